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
    from qgraph.methods.reconstruct.reconstruct import reconstruct as learned

    samples = given.need_samples("reconstruction learns from samples")
    return learned(plan, given.view, samples, observed=given.observed, job=given.job)
