"""Hand a result whose outputs miss their target to the guard, and record what the repair costs."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from qgraph.assess.verdict import Verdict
from qgraph.errors import QualityWarning, UsageError
from qgraph.jobs.below import TARGET_DB, below_eight_bits
from qgraph.jobs.plan_judge import SAME_CLASS, PlanJudge, margin
from qgraph.jobs.prepare import Gathered
from qgraph.jobs.result import GivenUp, Result
from qgraph.methods.guard.concessions import apply_concessions, widened, without_shifts
from qgraph.methods.guard.guard import COMFORT, COMFORTS, FEW, INSISTED, REPAIR, Effort, comforted, guard
from qgraph.methods.guard.search import Search
from qgraph.plan.plan import QuantPlan
from qgraph.running.wording import option

SPARE_DB = max(comfort.spare_db for comfort in COMFORTS)  # outputs this far above the target are left alone
MUCH_SPARE_DB = min(comfort.spare_db for comfort in COMFORTS)  # a repair that leaves more took too much
WORTH_DB = 0.5  # a variant must beat the plan by this much
TIE_DB = 1.0  # full ranges that are this close to clips measure no worse
UNSURE_DB = 3.0  # nor do those this close, unless a test over the samples says so
DOUBT_DB = 18.0  # with less to spare, clips are doubted
SURE_DB = 30.0  # outputs this far above the target on held-out samples, even few of them, are left as they are


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
        raise UsageError(f"{option('guard')} is a number of dB such as 20, or off, not '{guard}'")
    return target


def guarded(given: Gathered, result: Result, *, judge: Callable[[], PlanJudge], guard_db: float | str | None) -> Result:
    """The result, repaired where its outputs miss the target; `judge` makes what measures plans, if that is needed.

    With less than `DOUBT_DB` to spare, full ranges are tried instead of clips, and stay unless they measure worse. If
    the target itself is missed, the guard gives up grids; if it is met with less than `SPARE_DB` to spare, it gives up
    what is cheap. When the caller set no target, plans with grids below 8 bits are not changed.
    """
    target = parse_target(guard_db)
    quality = result.quality
    if target is None or quality is None or given.samples is None:
        return result
    if guard_db is None and below_eight_bits(result.plan):
        return result
    if _margin(result, target) >= SURE_DB:
        return result
    task = _Task(given=given, judge=judge(), target=target, before=quality, insists=guard_db is not None)
    if task.spare(result) < DOUBT_DB:
        result = task.best_variant(result)
    if task.spare(result) < 0:
        result = task.repaired(result)
    if given.source == "distilled" or not 0 <= task.spare(result) < SPARE_DB:  # no reserve on distilled samples holds
        return result
    return task.comforted(result)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Task:
    """The guard at work on a result whose verdict was `before`; `insists`: the caller named the target."""

    given: Gathered
    judge: PlanJudge
    target: float
    before: Verdict
    insists: bool

    def spare(self, result: Result) -> float:
        """How far the outputs are above the target on the samples that calibrate and, if they are, on the others."""
        margin = self.judge.margin(result.plan, self.target)
        return margin if margin < 0 else min(margin, _margin(result, self.target))

    def missed(self, result: Result) -> str:
        """What a result misses: decibels, or else classes."""
        outputs = () if result.quality is None else result.quality.outputs
        seen = [o.sqnr_db for o in outputs if o.sqnr_db is not None]
        worst = min(self.judge.worst_db(result.plan), *seen, np.inf)
        return f"{self.target:g} dB" if worst < self.target else f"{SAME_CLASS:.0%} of the classes"

    def best_variant(self, result: Result) -> Result:
        """The result with full ranges, unless it measures worse, or without bias shifts where that measures better.

        Samples beyond a clip may lose any amount and those that calibrate show few of them, so a tie goes to full
        ranges, and so does a lead of clips that rests on a few samples. Shifts are only doubted where little is to
        spare.
        """
        plan, margin = result.plan, self.judge.above(self.target)
        ranges = _ranges(self.given, plan)
        whole = plan.map_activations(lambda a: widened(a, ranges))
        tie = TIE_DB if self.judge.clearly_better(plan, whole) else UNSURE_DB
        variants = {"": (plan, 0.0), "whole ranges measured no worse than clips": (whole, tie)}
        if margin(plan) < SPARE_DB:
            variants["shifts of biases measured worse than none"] = without_shifts(plan), -WORTH_DB
        margins = {why: margin(other) + bonus for why, (other, bonus) in variants.items() if not why or other != plan}
        best = max(margins, key=lambda why: margins[why])
        if not best:
            return result
        chosen = variants[best][0]
        return dataclasses.replace(result, plan=dataclasses.replace(chosen, notes=(*chosen.notes, best)))

    def repaired(self, result: Result) -> Result:
        """The result after the guard, checked on held-out samples as well."""
        effort = dataclasses.replace(REPAIR, queries=REPAIR.queries * (INSISTED if self.insists else 1))
        wanted, better, goal = self.target, result, self.missed(result)
        with self.searching("finding what ruins the outputs", result.plan, effort) as search:
            for _ in range(2):  # a target met on calibration samples may be missed on held-out ones
                found = guard(search, self.judge.above(wanted), target_db=wanted)
                plan = found.plan
                if search.stopped and not found.holds:
                    stopped = f"the guard stopped after {effort.queries} measurements"
                    plan = dataclasses.replace(plan, notes=(*plan.notes, stopped))
                given_up = GivenUp(self.target, goal, found.concessions, self.before) if found.concessions else None
                better = dataclasses.replace(result, plan=plan, given_up=given_up)
                missed = self.spare(better)
                if missed >= 0:
                    return self.trimmed(better, result, search)
                easier = self.judge.margin(plan, self.target) - _margin(better, self.target)  # than held-out samples
                wanted += 1.0 + max(easier, min(-missed, self.target))
        if search.stopped and not self.insists:
            warnings.warn(
                f"the guard stopped after {effort.queries} measurements: {option('guard', self.target)} lets it make "
                f"{INSISTED} times as many",
                QualityWarning,
                stacklevel=4,
            )
        return better

    def trimmed(self, repaired: Result, start: Result, search: Search) -> Result:
        """The result with no more concessions than it takes, of many: the first of them, which were worth most.

        Errors do not quite add up, so that the last round of concessions may have taken too much. How many are enough
        is found by bisection.
        """
        known = repaired.given_up
        most = 0 if known is None else len(known.concessions)
        if known is None or most <= FEW or self.spare(repaired) < MUCH_SPARE_DB:
            return repaired
        least = most // 4
        shifted = any(layer.bias_shift for layer in repaired.plan.layers)
        best, whole = repaired, start.plan if shifted else without_shifts(start.plan)
        while most - least > 1:
            count = (most + least) // 2
            first = known.concessions[:count]
            plan = apply_concessions(whole, search.view, first, search.ranges)
            fewer = dataclasses.replace(start, plan=plan, given_up=dataclasses.replace(known, concessions=first))
            if self.spare(fewer) >= WORTH_DB:
                best, most = fewer, count
            else:
                least = count
        return best

    def comforted(self, result: Result) -> Result:
        """The result further above the target, where that is cheap and no worse on held-out samples."""
        held_out = _margin(result, self.target)
        wanted = self.target + max(self.judge.margin(result.plan, self.target) - held_out, 0.0)
        with self.searching("finding what is cheap to give up", result.plan, COMFORT) as search:
            found = comforted(search, self.judge.above(wanted), target_db=wanted)
        if not found.concessions:
            return result
        gone = result.given_up or GivenUp(self.target, f"a reserve above {self.target:g} dB", (), self.before)
        given_up = dataclasses.replace(gone, concessions=(*gone.concessions, *found.concessions))
        better = dataclasses.replace(result, plan=found.plan, given_up=given_up)
        return better if _margin(better, self.target) >= min(held_out - WORTH_DB, SPARE_DB) else result

    @contextmanager
    def searching(self, title: str, plan: QuantPlan, effort: Effort) -> Iterator[Search]:
        """A search for the grids of a plan to give up, which tells the job's progress of every measurement."""
        given = self.given
        with given.job.progress.stage(title, None) as advance:
            yield Search(
                plan,
                given.view,
                self.judge.few(effort.samples),
                queries=effort.queries,
                ranges=_ranges(given, plan),
                threads=given.job.threads,
                tick=lambda: advance(1),
            )


def _margin(result: Result, target: float) -> float:
    return margin(() if result.quality is None else result.quality.outputs, target)


def _ranges(given: Gathered, plan: QuantPlan) -> dict[str, tuple[float, float]]:
    observed = given.observed
    return {} if observed is None else {a.tensor: observed.range_of(a.tensor) for a in plan.activations}
