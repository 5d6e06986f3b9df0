"""The methods that run once, after every layer has its bits.

Those that the recipe asks for stay whatever they make. Second-order rounding and reconstruction, which it offers where
nobody named another rounding, stay only where samples that calibrate nothing prefer them: by the squared errors of the
outputs, relative to their power. Distilled samples are held out like others. What would take more than some minutes is
left to those who ask for it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph.jobs.below import below_eight_bits
from qgraph.jobs.prepare import Gathered
from qgraph.lowering.output_errors import output_errors
from qgraph.plan.grids import sound
from qgraph.plan.plan import QuantPlan
from qgraph.plan.registry import Method, chain, find, run
from qgraph.plan.words import RECONSTRUCT, SECOND_ORDER
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset

MOST_WORK = 4 * 10**12  # multiplications, some minutes


def finished(plan: QuantPlan, given: Gathered) -> tuple[QuantPlan, tuple[str, ...]]:
    """The plan after the methods that run once, and the names of those that changed it beyond the recipe's own."""
    names = given.recipe.methods
    stood_on = {step.name for name in names for step in chain(name)[:-1]}
    for name in names:
        if name not in stood_on:  # else the method that stands on it runs it
            plan = run(name, plan, given, once=True)
    plan, kept = _with_offers(plan, given)
    return plan, (*names[1:], *kept)


def _with_offers(plan: QuantPlan, given: Gathered) -> tuple[QuantPlan, tuple[str, ...]]:
    """The plan after every method on offer that held-out samples prefer, and the names of these."""
    methods = [find(name) for name in given.recipe.offered]
    apart = given.trial.samples
    if not methods or apart is None or apart is given.samples or not given.variants:
        return plan, ()
    if RECONSTRUCT not in given.recipe.offered:
        if not below_eight_bits(plan):
            return plan, ()
        from qgraph.methods.second_order.round import multiplications  # gradients take a while to import

        if multiplications(plan, given.view) > MOST_WORK:
            note = f"not rounded to second order, which would take minutes: {option('rounding', SECOND_ORDER)}"
            return dataclasses.replace(plan, notes=(*plan.notes, note)), ()
    errors, kept = output_errors(given.net, apart, format=given.format), []
    for method in methods:
        better = method.function(plan, given)
        before, after = (errors(sound(p, given.view, target_cpu=given.recipe.target_cpu)) for p in (plan, better))
        if after < before:
            kept.append(method.name)
            plan = dataclasses.replace(better, notes=(*better.notes, _said(method, before, after, apart)))
    return plan, tuple(kept)


def _said(method: Method, before: float, after: float, samples: Dataset) -> str:
    decibels = (-10 * np.log10(max(error, 1e-30)) for error in (before, after))
    return f"{method.name}: {' -> '.join(f'{d:.1f}' for d in decibels)} dB on {samples.count} samples held out"
