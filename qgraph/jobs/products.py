"""How the products of a network run, where the caller leaves it open: on static grids, or on dynamic ones.

A static grid spans what calibration saw; a dynamic one what the run at hand has, and outlier channels of its operand
may be moved into the weight (`qgraph.methods.balance`). All cost about the same, so that what measures best on
calibration samples is taken; static grids unless another is better by `WORTH_DB`.
"""

from __future__ import annotations

import dataclasses

from qgraph.graph.sites import GraphView, choose_layers
from qgraph.jobs.plan_judge import PlanJudge, few_samples
from qgraph.jobs.prepare import Gathered
from qgraph.plan.dynamic import why_not_dynamic
from qgraph.plan.plan import QuantPlan
from qgraph.plan.registry import find

WORTH_DB = 0.5
SAMPLES = 16
_TARGET_DB = 20.0  # margins are compared, so that any target does


def best_products(given: Gathered, plan: QuantPlan, *, fixed: bool) -> QuantPlan:
    """The plan, or the one with dynamic products that measures better; `fixed`: the caller chose static grids."""
    recipe = given.recipe
    searched = recipe.mixed or recipe.ingredients or find(recipe.method).trains
    if given.samples is None or not given.variants or searched or given.format != "qdq":
        return plan
    rivals: dict[str, Gathered] = {}
    if recipe.dynamic:
        if any(quant.weight.input_scale for quant in plan.layers if quant.runs == "dynamic"):
            rivals["outlier channels stay: moving them measured worse"] = _with(given, balance=False)
    elif not fixed and recipe.static_bits == 8 and _has_products(given.view, recipe.keep):
        rivals["dynamic products measured better than static grids"] = _with(given, dynamic_products=True)
        if recipe.balance:
            rivals["dynamic products, without moving outlier channels, measured better than static grids"] = _with(
                given, dynamic_products=True, balance=False
            )
    return _best(given, plan, rivals) if rivals else plan


def _best(given: Gathered, plan: QuantPlan, rivals: dict[str, Gathered]) -> QuantPlan:
    judge = PlanJudge(given, few_samples(given, SAMPLES), _TARGET_DB)
    best, most = plan, judge(plan) + WORTH_DB
    seen = [plan]
    for why, rival in rivals.items():
        other = rival.plan()
        if other in seen or not any(quant.runs == "dynamic" for quant in other.layers):
            continue
        seen.append(other)
        margin = judge(other)
        if margin > most:
            best, most = dataclasses.replace(other, notes=(*other.notes, why)), margin
    return best


def _with(given: Gathered, **changes: bool) -> Gathered:
    return dataclasses.replace(given, recipe=dataclasses.replace(given.recipe, **changes))


def _has_products(view: GraphView, keep: tuple[str, ...]) -> bool:
    return any(not why_not_dynamic(layer) for layer in choose_layers(view, keep)[0])
