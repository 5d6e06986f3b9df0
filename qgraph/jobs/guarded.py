"""Hand a result whose outputs miss their target to the guard, and record what the repair costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from qgraph.assess.verdict import Verdict
from qgraph.errors import UsageError
from qgraph.jobs.below import TARGET_DB, below_eight_bits
from qgraph.jobs.plan_judge import PlanJudge, margin
from qgraph.jobs.prepare import Gathered
from qgraph.jobs.result import GivenUp, Result
from qgraph.methods.guard.concessions import widened
from qgraph.methods.guard.guard import COMFORTS, Guarded, Judge, comforted, guard
from qgraph.plan.plan import QuantPlan

SPARE_DB = max(comfort.spare_db for comfort in COMFORTS)  # outputs this far above the target are left alone
WORTH_DB = 0.5  # a variant must beat the plan by this much
TIE_DB = 1.0  # full ranges that are this close to clips measure no worse
SAMPLES = 16  # the most samples on which errors are injected
FEW_SAMPLES = 4  # where it is only for dB to spare
ENOUGH = 16  # held-out samples; with fewer, those that calibrate are looked at as well
SURE_DB = 30.0  # unless the outputs are this far above the target: few samples are enough to see that


def parse_target(guard: float | str | None) -> float | None:
    """The target in dB, 20 by default; None where the guard is off."""
    if guard is None:
        return TARGET_DB
    if guard == "off":
        return None
    try:
        target = float(guard)
    except ValueError:
        target = np.nan
    if not 0 < target < 200:
        raise UsageError(f"--guard is a number of dB such as 20, or off, not '{guard}'")
    return target


def guarded(given: Gathered, result: Result, *, guard_db: float | str | None) -> Result:
    """The result, repaired where its outputs miss the target.

    If an output is less than `SPARE_DB` above the target, two variants of the plan are tried: full ranges instead of
    clips, and biases without their shifts. If the target itself is missed, the guard gives up grids; if it is met with
    less to spare, it gives up what is cheap. When the caller set no target, plans with grids below 8 bits are not
    changed.
    """
    target = parse_target(guard_db)
    quality = result.quality
    if target is None or quality is None or given.samples is None:
        return result
    if guard_db is None and below_eight_bits(result.plan):
        return result
    sure = quality.samples >= ENOUGH or _margin(result, target) >= SURE_DB
    judge = None if sure else PlanJudge(given)
    spare = _spare(result, judge, target)
    if spare >= SPARE_DB:
        return result
    judge = judge or PlanJudge(given)
    result = _best_variant(given, result, judge.above(target))
    if _spare(result, judge, target) < 0:
        result = _repaired(given, result, quality, judge, target)
    spare = _spare(result, judge, target)
    if given.source == "distilled" or not 0 <= spare < SPARE_DB:  # a reserve on distilled samples is none on others
        return result
    return _comforted(given, result, quality, judge, target)


def _spare(result: Result, judge: PlanJudge | None, target: float) -> float:
    """How far the outputs are above the target on held-out samples and, with a judge, on those that calibrate."""
    held_out = _margin(result, target)
    return held_out if judge is None else min(held_out, judge.margin(result.plan, target))


def _best_variant(given: Gathered, result: Result, judge: Judge) -> Result:
    """The result with full ranges, unless it measures worse, or without bias shifts where that measures better.

    Samples beyond a clip may lose any amount and those that calibrate show few of them, so a tie goes to full ranges.
    """
    plan, ranges = result.plan, _ranges(given, result.plan)
    plain = plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=()))
    variants = {
        "": (plan, 0.0),
        "whole ranges measured no worse than clips": (plan.map_activations(lambda a: widened(a, ranges)), TIE_DB),
        "shifts of biases measured worse than none": (plain, -WORTH_DB),
    }
    margins = {why: judge(other) + bonus for why, (other, bonus) in variants.items() if not why or other != plan}
    best = max(margins, key=lambda why: margins[why])
    if not best:
        return result
    chosen = variants[best][0]
    return dataclasses.replace(result, plan=dataclasses.replace(chosen, notes=(*chosen.notes, best)))


def _repaired(given: Gathered, result: Result, before: Verdict, judge: PlanJudge, target: float) -> Result:
    """The result after the guard, checked on held-out samples as well."""
    wanted, better = target, result
    for _ in range(2):  # a target met on calibration samples may be missed on held-out ones
        found = _give_up(guard, given, result.plan, judge, wanted, samples=SAMPLES)
        given_up = GivenUp(target, found.concessions, before) if found.concessions else None
        better = dataclasses.replace(result, plan=found.plan, given_up=given_up)
        missed = _spare(better, judge, target)
        if missed >= 0:
            return better
        easier = judge.margin(better.plan, target) - _margin(better, target)  # than held-out samples
        wanted += 1.0 + max(easier, min(-missed, target))
    return better


def _comforted(given: Gathered, result: Result, before: Verdict, judge: PlanJudge, target: float) -> Result:
    """The result further above the target, where that is cheap and no worse on held-out samples."""
    easier = max(judge.margin(result.plan, target) - _margin(result, target), 0.0)  # than held-out samples
    wanted = target + easier
    found = _give_up(comforted, given, result.plan, judge, wanted, samples=FEW_SAMPLES)
    if not found.concessions:
        return result
    gone = result.given_up or GivenUp(target, (), before)
    given_up = dataclasses.replace(gone, concessions=(*gone.concessions, *found.concessions))
    better = dataclasses.replace(result, plan=found.plan, given_up=given_up)
    return better if _margin(better, target) >= min(_margin(result, target) - WORTH_DB, SPARE_DB) else result


def _give_up(
    how: Callable[..., Guarded], given: Gathered, plan: QuantPlan, judge: PlanJudge, wanted: float, *, samples: int
) -> Guarded:
    """What `guard` or `comforted` makes of the plan, with errors injected on about so many samples."""
    return how(
        plan,
        given.view,
        judge.few(samples),
        judge.above(wanted),
        target_db=wanted,
        ranges=_ranges(given, plan),
        threads=given.job.threads,
        progress=given.job.progress,
    )


def _margin(result: Result, target: float) -> float:
    return margin(() if result.quality is None else result.quality.outputs, target)


def _ranges(given: Gathered, plan: QuantPlan) -> dict[str, tuple[float, float]]:
    observed = given.observed
    return {} if observed is None else {a.tensor: observed.range_of(a.tensor) for a in plan.activations}
