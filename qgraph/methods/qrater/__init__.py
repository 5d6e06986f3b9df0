"""Q-Rater: clipping, rounding and bias correction found by measuring the task (Kim et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan


@method("qrater", after="aciq", once=True, defaults={"symmetric": True, "clip": "qrater", "rounding": "qrater"})
def qrater(plan: QuantPlan, given: Material) -> QuantPlan:
    """Clips, roundings and bias shifts found by measuring the task, layer by layer (Kim et al., 2021)."""
    if not given.recipe.ingredients:
        return plan
    from qgraph.methods.qrater.config import SearchConfig
    from qgraph.methods.qrater.polish import polish

    samples = given.need_samples("a search measures the task on samples")
    config = SearchConfig(ingredients=given.recipe.ingredients, fine=True, seed=given.job.seed)
    return polish(plan, given.net, samples, config=config, job=given.job).plan
