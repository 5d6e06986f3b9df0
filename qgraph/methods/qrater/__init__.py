"""Q-Rater: clipping, rounding and bias correction found by measuring the task (Kim et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import InPaper, method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan


_DEFAULTS = {"symmetric": True, "clip": "qrater", "rounding": "qrater"}
_PAPER = (
    InPaper("qrater.objective", "accuracy", "one answer more or less on few images is mostly chance"),
    InPaper("qrater.base", False, "a search that includes where it starts ends no worse"),
    InPaper("qrater.corrected", False, "errors that the shift of the bias undoes should not decide"),
    InPaper("qrater.race", False, "races find as good a plan with 6 to 14 times fewer images"),
    InPaper("qrater.patience", 50, "with `--explore bo`: points that bring nothing ten times in a row rarely do later"),
    InPaper("per_channel", False, "a scale for each channel costs nothing at run time"),
    InPaper("fold_bn", False, "kernels take no time for BatchNormalization that is part of the weights"),
    InPaper("target_cpu", "vnni", "files must not saturate on CPUs without VNNI"),
)


@method(
    "qrater",
    after="aciq",
    once=True,
    defaults=_DEFAULTS,
    configs=["qgraph.methods.qrater.config:SearchConfig"],
    paper=_PAPER,
)
def qrater(plan: QuantPlan, given: Material) -> QuantPlan:
    """Clips, roundings and bias shifts found by measuring the task, layer by layer (Kim et al., 2021)."""
    if not given.recipe.ingredients:
        return plan
    import dataclasses

    from qgraph.methods.qrater.config import SearchConfig
    from qgraph.methods.qrater.polish import polish
    from qgraph.methods.qrater.protocol import starting_in_paper

    samples = given.need_samples("a search measures the task on samples")
    in_paper = given.recipe.protocol == "paper"
    config = dataclasses.replace(
        given.recipe.config(SearchConfig),
        ingredients=given.recipe.ingredients,
        fine=not in_paper,
        seed=given.job.seed,
    )
    start = starting_in_paper(given.view, given.observed, given.recipe) if in_paper else plan
    return polish(start, given.net, samples, config=config, job=given.job).plan
