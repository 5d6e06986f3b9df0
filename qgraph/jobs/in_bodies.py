"""Products in the bodies of Loop and Scan, whose operands are new at every step: dynamic where that is faster.

Static grids make such a product slower than in floats. A dynamic one saves time in a cell of some hundred channels, and
costs time in a small one, so that the files with and without are measured beside each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qgraph.assess.latency import latency
from qgraph.graph.sites import GraphView
from qgraph.jobs.below import TARGET_DB
from qgraph.jobs.no_slower import TIMED_SECONDS
from qgraph.jobs.plan_judge import PlanJudge
from qgraph.jobs.prepare import Gathered
from qgraph.lowering.lower import lower
from qgraph.plan.dynamic import is_product
from qgraph.plan.grids import sound
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session

_FASTER = 0.97  # of the time with floats in bodies


def with_dynamic_bodies(given: Gathered, plan: QuantPlan, judge: Callable[[], PlanJudge]) -> QuantPlan:
    """The plan with dynamic products in bodies, where they are faster on this machine and the outputs keep the target.

    That is asked on samples that calibrate and on those held out. An output that misses the target anyway must not
    become worse.
    """
    names = products_in_bodies(plan, given.view)
    if not names or given.samples is None:
        return plan
    recipe = dataclasses.replace(given.recipe, balance=False, dynamic_products=True)
    dynamic = dataclasses.replace(given, recipe=recipe).plan()
    other = sound(as_in(dynamic, plan, names), given.view, target_cpu=recipe.target_cpu)
    for samples in filter(None, (judge(), judge().held_out())):
        if samples.margin(other, TARGET_DB) < min(samples.margin(plan, TARGET_DB), 0.0):
            return plan
    before, after = (Session(lower(given.net, p, format=given.format, packed=False), threads=1) for p in (plan, other))
    found = latency(before, after, next(iter(given.samples.batches(1))).feeds)
    if found.ratio is None or found.ratio > _FASTER or (found.float_seconds or 0.0) < TIMED_SECONDS:
        return plan
    return dataclasses.replace(other, notes=(*other.notes, f"{len(names)} products in bodies run on dynamic grids"))


def products_in_bodies(plan: QuantPlan, view: GraphView) -> frozenset[str]:
    """The products in bodies of Loop and Scan that may find the grid of their operand in every step, by name."""
    layers = (view.by_name[quant.name] for quant in plan.layers if quant.runs in ("floats", "dynamic"))
    return frozenset(layer.name for layer in layers if layer.in_steps and is_product(layer))


def as_in(source: QuantPlan, plan: QuantPlan, names: frozenset[str]) -> QuantPlan:
    """The plan with the layers of these names as in `source`."""
    taken = {quant.name: quant for quant in source.layers if quant.name in names}
    return plan.map_layers(lambda quant: taken.get(quant.name, quant))
