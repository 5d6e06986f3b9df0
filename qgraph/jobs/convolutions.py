"""Convolutions between floats: on dynamic grids where static ones leave too little of the outputs.

The operand of a convolution behind a LayerNorm or GELU may have outliers that differ from sample to sample. A static
grid spans those of all samples, and the result has a static grid as well. A dynamic grid (`qgraph.lowering.unfold`)
spans what the run at hand has, and the result needs none. That takes longer than static grids and less than floats: as
few convolutions change as the outputs need to hold 30 dB at 95 % confidence (`layer_by_layer`). Single samples must get
better, those that were held out no worse, and a batch, in which a loud sample drowns others, not much worse.

Convolutions that read codes of other layers, or whose codes others read, stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container

from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, nearest
from qgraph.jobs.below import TARGET_DB
from qgraph.jobs.in_time import foreteller
from qgraph.jobs.layer_by_layer import WORTH_DB, Ways, best_mix
from qgraph.jobs.no_slower import TIMED_SECONDS
from qgraph.jobs.plan_judge import PlanJudge
from qgraph.jobs.prepare import Gathered
from qgraph.methods.guard.concessions import without_islands
from qgraph.plan.dynamic import why_not_dynamic
from qgraph.plan.grids import sound
from qgraph.plan.plan import QuantPlan

ENOUGH_DB = 30.0  # of an output, at 95 % confidence, for which convolutions stay on static grids
_FEWEST, _ALONE, _TOGETHER = 8, 32, 16  # samples, one by one at least and at most, and in a batch
_SECONDS = 5.0  # of runs that measure the noise of every layer; slow networks with many such layers stay as they are
_DROWNED_DB = 3.0  # that a batch may lose

_AS_IT_IS = "as it is"
_DYNAMIC = "dynamic"


def with_dynamic_convolutions(given: Gathered, plan: QuantPlan, judge: Callable[[], PlanJudge]) -> QuantPlan:
    """The plan, or the one with dynamic convolutions where its outputs need them."""
    names = between_floats(plan, given.view)
    if not names:
        return plan
    if judge().sure_db(plan) >= ENOUGH_DB:
        return plan
    foretell = foreteller(given.net, given.samples)
    runs = int(_SECONDS / (len(names) * foretell.float_seconds))
    if foretell.float_seconds <= TIMED_SECONDS or runs < _FEWEST:
        return plan
    plans = {_AS_IT_IS: plan, _DYNAMIC: _made_dynamic(plan, names)}
    ways = Ways(view=given.view, plans=plans, base=_AS_IT_IS, first=_AS_IT_IS)
    alone = judge().in_batches(1, most=min(runs, _ALONE)) or judge()
    enough = ENOUGH_DB + alone.worst_db(plan) - alone.sure_db(plan)
    mix = best_mix(ways, alone.batches, alone.noise(plan), foretell, enough_db=enough, threads=given.job.threads)
    found = sound(mix.plan, given.view, target_cpu=given.recipe.target_cpu)
    changed = [quant.name for quant in found.layers if quant.name in names and quant.runs == "dynamic"]
    if not changed or not _better(found, plan, alone, judge()) or foretell(found).ratio >= 1:
        return plan
    said = f"{len(changed)} convolution{'s' * (len(changed) > 1)} run on dynamic grids: static ones measured worse"
    return dataclasses.replace(found, notes=(*found.notes, said))


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


def _better(found: QuantPlan, plan: QuantPlan, alone: PlanJudge, judge: PlanJudge) -> bool:
    """Whether single samples are better than before, those held out not surely worse, and a batch not much."""
    together, held_out = judge.in_batches(_TOGETHER, most=1), judge.held_out(1 if alone is not judge else None)

    def gained(one: PlanJudge | None) -> float:
        return 0.0 if one is None else one.margin(found, TARGET_DB) - one.margin(plan, TARGET_DB)

    worse = held_out is not None and held_out.clearly_better(plan, found)
    return gained(alone) > WORTH_DB and not worse and gained(together) > -_DROWNED_DB
