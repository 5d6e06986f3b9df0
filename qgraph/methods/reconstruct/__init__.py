"""Reconstruction: roundings, grids and biases learned block by block against the float network (BRECQ, QDrop)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan


@method("reconstruct", after="second-order", once=True, needs=["data"])
def reconstruct(plan: QuantPlan, given: Material) -> QuantPlan:
    """Second-order rounding, then codes, grids and biases learned block by block (AdaRound, BRECQ, QDrop)."""
    from qgraph.methods.reconstruct.config import MEMORY, STEPS, ReconstructConfig
    from qgraph.methods.reconstruct.walk import reconstruct_blocks

    samples = given.need_samples("reconstruction learns from samples")
    nbytes = 0 if given.observed is None else given.observed.sample_bytes
    most = max(1, min(ReconstructConfig().samples, MEMORY // max(nbytes // 4, 1)))  # held between two blocks
    config = ReconstructConfig(steps=STEPS[given.recipe.effort or "default"], samples=most)
    return reconstruct_blocks(plan, given.view, samples, config=config, sample_bytes=nbytes, job=given.job)
