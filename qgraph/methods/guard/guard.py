"""plan -> plan: where an output misses its target, find the grids that ruin it and give them up, cheapest first.

Errors of different grids are nearly independent, so their powers add up at the outputs, where `Switches` measures them:

    noise_o(plan) ~ sum_g noise_o(g)        wanted: noise_o <= 10^(-target / 10)

The grids that matter are found by bisection: a half whose joint error is negligible is not searched. A tensor's grid
may first get its full range and then be given up (its layers keep quantized weights and multiply in floating point); a
weight's grid is given up last, and its layer becomes float. The concession that removes the most noise for its cost
comes first. The resulting plan is judged as it will be written, both with and without the shifts of its biases: a shift
that corrects the mean error where a tensor is large is itself an error where it is small. Where errors did not add up
as expected, more grids are given up.

A network that only a few grids ruin gets a margin: as long as at most a tenth of its tensors are given up, the guard
aims `REPAIR_DB` above the target. Beyond that only the target counts, and weights may be given up too.

Outputs that barely meet their target may miss it on other samples. `comforted` gives up grids that hurt much and cost
little.

Both measure only so many sets of grids (`Effort`), the noisiest first, and then make the best of what they know.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from qgraph.methods.guard.concessions import Concession, apply_concessions, without_shifts
from qgraph.methods.guard.search import Search, power
from qgraph.plan.plan import QuantPlan

Judge = Callable[[QuantPlan], float]
"""How far the written model of a plan is above its targets, in dB; negative where it misses one."""

ROUNDS = 4
REPAIR_DB = 10.0
FEW = 4  # tensors that may be given up for a margin even if they are more than a tenth


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a search may cost: `queries` sets of grids are measured at most, each on about `samples` samples."""

    samples: int
    queries: int


REPAIR = Effort(samples=4, queries=64)
COMFORT = Effort(samples=2, queries=28)
INSISTED = 4  # times as many queries, where the caller names a target


@dataclass(frozen=True, slots=True, kw_only=True)
class Comfort:
    """A reserve of `spare_db` is worth this `budget` (see `Costs`), if it gains `gain_db` or reaches the reserve."""

    spare_db: float
    budget: float
    gain_db: float


COMFORTS = (Comfort(spare_db=12.0, budget=0.02, gain_db=1.0), Comfort(spare_db=6.0, budget=0.15, gain_db=3.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """The plan that meets the target, or comes as close as possible, and the concessions it took."""

    plan: QuantPlan
    concessions: tuple[Concession, ...]
    margin: float
    """How far the outputs are above their targets on the judged samples, in dB; negative where they miss."""

    @property
    def holds(self) -> bool:
        return self.margin >= 0


def guard(search: Search, judge: Judge, *, target_db: float) -> Guarded:
    """Give up grids until `judge` accepts the plan of the search; one that it accepts as it is does not change."""
    plan = search.plan
    best = _judged(plan, (), judge)
    if best.holds:
        return best
    generous = (search.within(power(target_db + REPAIR_DB), tensors=max(FEW, len(plan.activations) // 10)),)
    firm = (search.within(power(target_db + 6 * more)) for more in range(ROUNDS))
    seen = set[tuple[Concession, ...]]()
    for conceded in itertools.chain(generous, firm):
        if conceded in seen:
            continue
        seen.add(conceded)
        found = _judged(apply_concessions(plan, search.view, conceded, search.ranges), conceded, judge)
        best = max(best, found, key=lambda guarded: guarded.margin)
        if best.holds:
            break
    return best


def _judged(plan: QuantPlan, concessions: tuple[Concession, ...], judge: Judge) -> Guarded:
    """The judged plan; without bias shifts if it misses its targets with them and comes closer without."""
    first = Guarded(plan=plan, concessions=concessions, margin=judge(plan))
    if first.holds or not any(layer.bias_shift for layer in plan.layers):
        return first
    plain = without_shifts(plan)
    second = Guarded(plan=plain, concessions=concessions, margin=judge(plain))
    return max(first, second, key=lambda guarded: guarded.margin)


def comforted(search: Search, judge: Judge, *, target_db: float) -> Guarded:
    """The plan that meets its target with as much reserve as is cheap to get (see `COMFORTS`)."""
    plan = search.plan
    best = Guarded(plan=plan, concessions=(), margin=judge(plan))
    for comfort in COMFORTS:
        if best.margin >= comfort.spare_db:
            break
        conceded = search.cheap(power(target_db + comfort.spare_db), budget=comfort.budget)
        if not conceded:
            continue
        found = _judged(apply_concessions(plan, search.view, conceded, search.ranges), conceded, judge)
        if found.margin >= min(best.margin + comfort.gain_db, comfort.spare_db):
            best = found
    return best
