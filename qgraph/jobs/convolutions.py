"""Convolutions between floats: on dynamic grids where static ones leave too little of the outputs.

The operand of a convolution behind a LayerNorm or GELU may have outliers that differ from sample to sample. A static
grid spans those of all samples, and the result has a static grid as well. A dynamic grid (`qgraph.lowering.unfold`)
spans what the run at hand has, and the result needs none. That takes longer than static grids and less than floats: as
few convolutions change as the outputs need to hold 30 dB at 95 % confidence (`layer_by_layer`). Single samples must get
better, those that were held out no worse, and a batch, in which a loud sample drowns others, not much worse. What is
cheap to ask comes first: if single samples gain nothing where all are dynamic, no layer is measured for itself.

Convolutions that read codes of other layers, or whose codes others read, stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container

from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, nearest
from qgraph.jobs.below import TARGET_DB, below_eight_bits
from qgraph.jobs.in_time import foreteller
from qgraph.jobs.layer_by_layer import WORTH_DB, Ways, best_mix
from qgraph.jobs.no_slower import TIMED_SECONDS
from qgraph.jobs.plan_judge import PlanJudge
from qgraph.jobs.prepare import Gathered
from qgraph.methods.guard.concessions import without_islands
from qgraph.plan.dynamic import why_not_dynamic
from qgraph.plan.grids import sound
from qgraph.plan.plan import QuantPlan
from qgraph.running.profile import least_seconds
from qgraph.running.sessions import Session

ENOUGH_DB = 30.0  # of an output, at 95 % confidence, for which convolutions stay on static grids
_FEWEST, _ALONE, _TOGETHER = 8, 32, 16  # samples, one by one at least and at most, and in a batch
_SECONDS = 5.0  # of runs that measure the noise of every layer; slow networks with many such layers stay as they are
_DROWNED_DB = 3.0  # that a batch may lose

_AS_IT_IS = "as it is"
_DYNAMIC = "dynamic"


def with_dynamic_convolutions(
    given: Gathered, plan: QuantPlan, judge: Callable[[], PlanJudge], *, guarded: bool
) -> QuantPlan:
    """The plan, or the one with dynamic convolutions where its outputs need them; `guarded`: the guard comes next.

    Outputs that would miss the target all the same are left to the guard, which has grids for all layers to give up.
    """
    names = between_floats(plan, given.view)
    if not names:
        return plan
    if judge().sure_db(plan) >= ENOUGH_DB:
        return plan
    alone = _alone(given, judge(), len(names))
    if alone is None:
        return plan
    every = _made_dynamic(plan, names)
    whole = sound(without_islands(every, given.view), given.view, target_cpu=given.recipe.target_cpu)
    if not _worth_it(whole, plan, alone, guarded=guarded):
        return plan
    foretell = foreteller(given.net, given.samples)
    ways = Ways(view=given.view, plans={_AS_IT_IS: plan, _DYNAMIC: every}, base=_AS_IT_IS, first=_AS_IT_IS)
    enough = ENOUGH_DB + alone.worst_db(plan) - alone.sure_db(plan)
    mix = best_mix(ways, alone.batches, alone.noise(plan), foretell, enough_db=enough, threads=given.job.threads)
    found = sound(mix.plan, given.view, target_cpu=given.recipe.target_cpu)
    if alone.worst_db(found) < enough and _gained(alone, whole, found) > WORTH_DB:
        found = whole  # sums of large errors foretell little
    changed = [quant.name for quant in found.layers if quant.name in names and quant.runs == "dynamic"]
    if not changed or not _worth_it(found, plan, alone, guarded=guarded):
        return plan
    if not _holds_elsewhere(found, plan, alone, judge()) or foretell(found).ratio >= 1:
        return plan
    said = f"{len(changed)} convolution{'s' * (len(changed) > 1)} run on dynamic grids: static ones measured worse"
    return dataclasses.replace(found, notes=(*found.notes, said))


def _alone(given: Gathered, judge: PlanJudge, layers: int) -> PlanJudge | None:
    """What measures on single samples, as many as there is time for with so many layers; None if there is no point.

    That is where too few can be run, or where runs are too short for any time to be told.
    """
    seconds = least_seconds(Session(given.net.ir_model, threads=1), judge.few(1)[0].feeds, runs=2, seconds=0.0)
    runs = int(_SECONDS / (layers * max(seconds, TIMED_SECONDS)))
    if seconds <= TIMED_SECONDS or runs < _FEWEST:
        return None
    return judge.in_batches(1, most=min(runs, _ALONE)) or judge


def between_floats(plan: QuantPlan, view: GraphView) -> frozenset[str]:
    """The convolutions on integers that could be dynamic and share no codes with other layers, by name."""
    found = set[str]()
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        if layer.op != "Conv" or quant.runs != "integers" or quant.weight.input_scale or why_not_dynamic(layer):
            continue
        before = nearest(layer.input, plan.operand_grids)
        left = without_islands(_made_dynamic(plan, {quant.name}), view)
        kept = {grid.tensor for grid in left.activations}
        if before is not None and not {before.tensor, str(fused_output(layer.output).name)} & kept:
            found.add(quant.name)
    return frozenset(found)


def _made_dynamic(plan: QuantPlan, names: Container[str]) -> QuantPlan:
    return plan.map_layers(lambda quant: dataclasses.replace(quant, runs="dynamic") if quant.name in names else quant)


def _worth_it(found: QuantPlan, plan: QuantPlan, alone: PlanJudge, *, guarded: bool) -> bool:
    """Whether single samples are better than before, and good enough where the guard would act otherwise."""
    missed = guarded and not below_eight_bits(plan) and alone.margin(found, TARGET_DB) < 0
    return not missed and _gained(alone, found, plan) > WORTH_DB


def _holds_elsewhere(found: QuantPlan, plan: QuantPlan, alone: PlanJudge, judge: PlanJudge) -> bool:
    """Whether samples that were held out are not surely worse than before, and a batch not much."""
    together, held_out = judge.in_batches(_TOGETHER, most=1), judge.held_out(1 if alone is not judge else None)
    worse = held_out is not None and held_out.clearly_better(plan, found)
    return not worse and (together is None or _gained(together, found, plan) > -_DROWNED_DB)


def _gained(judge: PlanJudge, found: QuantPlan, plan: QuantPlan) -> float:
    """By how many decibels a plan is better than another."""
    return judge.margin(found, TARGET_DB) - judge.margin(plan, TARGET_DB)
