"""How the products of a network run, where the caller leaves it open: on static grids, or on dynamic ones.

A static grid spans what calibration saw; a dynamic one what the run at hand has, and outlier channels of its operand
may be moved into the weight (`qgraph.methods.balance`). All cost about the same, so that what measures best on
calibration samples is taken: static grids where they hold 40 dB, or the target in a network with next to no
products, or where no other is better by `WORTH_DB`. Samples are run one by one, and in a batch: where a loud one drowns
the others, dynamic grids are not taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qgraph.graph.sites import GraphView, choose_layers
from qgraph.graph.work import multiplications
from qgraph.jobs.below import TARGET_DB
from qgraph.jobs.plan_judge import PlanJudge
from qgraph.jobs.prepare import Gathered
from qgraph.plan.dynamic import why_not_dynamic
from qgraph.plan.plan import QuantPlan
from qgraph.plan.registry import find

WORTH_DB = 0.5
_DROWNED_DB = 6.0  # lost in a batch at most
_TOGETHER = 16
_COMFORT_DB = 20.0  # above the target: static grids that hold as much stay
_FEW = 0.02  # of the network's multiplications in products: then the target itself is enough


def best_products(given: Gathered, plan: QuantPlan, *, judge: Callable[[], PlanJudge], fixed: bool) -> QuantPlan:
    """The plan, or the one with dynamic products that measures better; `fixed`: the caller chose static grids."""
    recipe = given.recipe
    searched = recipe.mixed or recipe.ingredients or find(recipe.method).trains
    if given.samples is None or not given.variants or searched or given.format != "qdq":
        return plan
    rivals: dict[str, Gathered] = {}
    if recipe.dynamic:
        if any(quant.weight.input_scale for quant in plan.layers if quant.runs == "dynamic"):
            rivals["outlier channels stay: moving them measured worse"] = _with(
                given, balance=False, dynamic_products=False
            )
    elif not fixed and recipe.static_bits == 8 and _has_products(given.view, recipe.keep):
        rivals["dynamic products measured better than static grids"] = _with(
            given, balance=recipe.balance, dynamic_products=True
        )
        if recipe.balance:
            rivals["dynamic products, without moving outlier channels, measured better than static grids"] = _with(
                given, balance=False, dynamic_products=True
            )
    return _best(given, plan, rivals, judge()) if rivals else plan


def _best(given: Gathered, plan: QuantPlan, rivals: dict[str, Gathered], judge: PlanJudge) -> QuantPlan:
    best, most = plan, judge.margin(plan, TARGET_DB)
    enough = 0.0 if _products(given) < _FEW else _COMFORT_DB
    if most >= enough and not given.recipe.dynamic:
        return plan
    most += WORTH_DB
    seen = [plan]
    for why, rival in rivals.items():
        other = rival.plan()
        if other in seen or not any(quant.runs == "dynamic" for quant in other.layers):
            continue
        seen.append(other)
        margin = judge.margin(other, TARGET_DB)
        if margin > most and (given.recipe.dynamic or _holds_in_a_batch(other, judge)):
            best, most = dataclasses.replace(other, notes=(*other.notes, why)), margin
    return best


def _holds_in_a_batch(plan: QuantPlan, judge: PlanJudge) -> bool:
    """Whether samples together are about as good as one by one, where the model takes several."""
    alone, together = judge.in_batches(1, most=_TOGETHER), judge.in_batches(_TOGETHER, most=1)
    if alone is None or together is None:
        return True
    return together.margin(plan, TARGET_DB) > alone.margin(plan, TARGET_DB) - _DROWNED_DB


def _with(given: Gathered, *, balance: bool, dynamic_products: bool) -> Gathered:
    recipe = dataclasses.replace(given.recipe, balance=balance, dynamic_products=dynamic_products)
    return dataclasses.replace(given, recipe=recipe)


def _products(given: Gathered) -> float:
    """The share of the network's multiplications in products that could be dynamic."""
    work = {layer: multiplications(layer) for layer in choose_layers(given.view, given.recipe.keep)[0]}
    return sum(n for layer, n in work.items() if not why_not_dynamic(layer)) / max(sum(work.values()), 1)


def _has_products(view: GraphView, keep: tuple[str, ...]) -> bool:
    return any(not why_not_dynamic(layer) for layer in choose_layers(view, keep)[0])
