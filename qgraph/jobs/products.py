"""How the products of a network run, where the caller leaves it open: on static grids, on dynamic ones, or in floats.

A static grid spans what calibration saw; a dynamic one what the run at hand has, and outlier channels of its operand
may be moved into the weight (`qgraph.methods.balance`). As a whole, all cost about the same, so that what measures best
on calibration samples is taken: static grids where they hold 40 dB, or the target in a network with next to no
products, or where no other is better by `WORTH_DB`. Samples are run one by one, and in a batch: where a loud one drowns
the others, dynamic grids are not taken.

Products in bodies of Loop and Scan are dynamic or run in floats (`in_bodies`), and convolutions may be dynamic where
outputs need it (`convolutions`).

Then every layer may be changed to what is best for it (`layer_by_layer`), and stays changed if the outputs are not
worse, neither on calibration samples nor on those held out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

from qgraph.graph.sites import GraphView, choose_layers
from qgraph.graph.work import multiplications
from qgraph.jobs.below import TARGET_DB
from qgraph.jobs.convolutions import with_dynamic_convolutions
from qgraph.jobs.in_bodies import as_in, products_in_bodies, with_dynamic_bodies
from qgraph.jobs.in_time import foreteller
from qgraph.jobs.layer_by_layer import WORTH_DB, Ways, best_mix
from qgraph.jobs.no_slower import TIMED_SECONDS
from qgraph.jobs.plan_judge import PlanJudge
from qgraph.jobs.prepare import Gathered
from qgraph.plan.dynamic import is_product
from qgraph.plan.grids import sound
from qgraph.plan.plan import QuantPlan
from qgraph.plan.registry import find

_DROWNED_DB = 6.0  # lost in a batch at most
_TOGETHER = 16
_COMFORT_DB = 20.0  # above the target: static grids that hold as much stay
_FEW = 0.02  # of the network's multiplications in products: then the target itself is enough
_SAMPLES = 1  # on which the noise of every layer is measured
_SAVES = 0.03  # of the network's time: what layers must save together, where they are not more exact

_STATIC = "static"
_DYNAMIC = "dynamic products measured better than static grids"
_PLAIN = "dynamic products, without moving outlier channels, measured better than static grids"
_STAY = "outlier channels stay: moving them measured worse"


def best_products(
    given: Gathered, plan: QuantPlan, *, judge: Callable[[], PlanJudge], fixed: bool, guarded: bool
) -> QuantPlan:
    """The plan, or the one whose products run in ways that measure better.

    `fixed`: the caller chose static grids; `guarded`: the guard comes next.
    """
    recipe = given.recipe
    searched = recipe.mixed or recipe.ingredients or find(recipe.method).trains
    if given.samples is None or not given.variants or searched or given.format != "qdq":
        return plan
    if recipe.dynamic:
        if any(quant.weight.input_scale for quant in plan.layers if quant.runs == "dynamic"):
            rivals = {_STAY: _with(given, balance=False, dynamic_products=False)}
            return _taken(_whole(given, plan, rivals, judge()))
        return plan
    if fixed or recipe.static_bits != 8:
        return plan
    plan = _beside_static(given, with_dynamic_bodies(given, plan, judge), judge)
    return with_dynamic_convolutions(given, plan, judge, guarded=guarded)


def _beside_static(given: Gathered, plan: QuantPlan, judge: Callable[[], PlanJudge]) -> QuantPlan:
    """The plan, or the one whose products run in ways that measure better than static grids."""
    recipe = given.recipe
    if not _has_products(given.view, recipe.keep):
        return plan
    enough = 0.0 if _products(given) < _FEW else _COMFORT_DB
    if judge().margin(plan, TARGET_DB) >= enough:
        return plan
    rivals = {_DYNAMIC: _with(given, balance=recipe.balance, dynamic_products=True)}
    if recipe.balance:
        rivals[_PLAIN] = _with(given, balance=False, dynamic_products=True)
    return _layer_by_layer(given, _whole(given, plan, rivals, judge()), judge())


def _whole(given: Gathered, plan: QuantPlan, rivals: Mapping[str, Gathered], judge: PlanJudge) -> Ways:
    """The plan and those of its rivals that differ, and which of them is best for all products alike."""
    plans, best, most = {_STATIC: plan}, _STATIC, judge.margin(plan, TARGET_DB) + WORTH_DB
    for why, rival in rivals.items():
        other = as_in(plan, rival.plan(), products_in_bodies(plan, given.view))
        if other in plans.values() or not any(quant.runs == "dynamic" for quant in other.layers):
            continue
        plans[why] = other
        margin = judge.margin(other, TARGET_DB)
        if margin > most and (given.recipe.dynamic or _holds_in_a_batch(other, judge)):
            best, most = why, margin
    return Ways(view=given.view, plans=plans, base=best, first=_STATIC)


def _taken(ways: Ways) -> QuantPlan:
    plan = ways.plans[ways.base]
    return plan if ways.base == _STATIC else dataclasses.replace(plan, notes=(*plan.notes, ways.base))


def _layer_by_layer(given: Gathered, ways: Ways, judge: PlanJudge) -> QuantPlan:
    """The plan that is best as a whole, with the layers changed that are better in another way."""
    whole = ways.plans[ways.base]
    if not ways.groups:
        return _taken(ways)
    foretell = foreteller(given.net, given.samples)
    timed = foretell if foretell.float_seconds > TIMED_SECONDS else None
    mix = best_mix(ways, judge.few(_SAMPLES), judge.noise(whole), timed, threads=given.job.threads)
    plan = sound(mix.plan, given.view, target_cpu=given.recipe.target_cpu)
    gained = judge.margin(plan, TARGET_DB) - judge.margin(whole, TARGET_DB)
    worth = gained > WORTH_DB or (mix.saves > _SAVES and gained > -WORTH_DB)
    known = ways.base != _STATIC  # that the dynamic grids of a whole network hold in a batch
    if not worth or not _holds_apart(plan, whole, judge) or not (known or _holds_in_a_batch(plan, judge)):
        return _taken(ways)
    return dataclasses.replace(plan, notes=(*plan.notes, _said(plan, given.view)))


def _said(plan: QuantPlan, view: GraphView) -> str:
    """How many products run in which way."""
    runs = Counter[str](quant.runs for quant in plan.layers if is_product(view.by_name[quant.name]))
    said = {"integers": "on static grids", "dynamic": "on dynamic ones", "floats": "in floats"}
    ways = ", ".join(f"{runs[how]} {words}" for how, words in said.items() if runs[how])
    return f"products run {ways}: measured layer by layer"


def _holds_apart(plan: QuantPlan, whole: QuantPlan, judge: PlanJudge) -> bool:
    """Whether a plan is no worse than another on samples that calibrate neither."""
    apart = judge.held_out()
    return apart is None or apart.margin(plan, TARGET_DB) >= apart.margin(whole, TARGET_DB)


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
    return sum(n for layer, n in work.items() if is_product(layer)) / max(sum(work.values()), 1)


def _has_products(view: GraphView, keep: tuple[str, ...]) -> bool:
    return any(layer.has_integer_kernel and is_product(layer) for layer in choose_layers(view, keep)[0])
