"""Racing: measure candidates on few samples first, and go on with those that may still win."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Measure = Callable[[Sequence[int], int, int], Sequence[Scores]]
"""(candidates, first block, end block) -> the scores of each candidate on the samples of these blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When a candidate is out: the paired test's confidence, and the share of the objective that does not matter.

    The leader is the best of many, so a round's `confidence` is divided among its tests (Bonferroni).
    `unit` is the smallest difference that a sample can make, where there is one: the test then counts one more sample
    that differs by it, so that a few equal answers do not pass for certainty. At most the share `keep` of the
    candidates goes on to the next round, the best ones, but `least` of them; a share of 1 leaves it to the test.
    """

    confidence: float
    tolerance: float
    unit: float = 0.0
    keep: float = 1.0
    least: int = 8

    def deviations(self, tests: int) -> float:
        """Standard errors that a mean must differ by from zero, where that is asked of so many at once."""
        return NormalDist().inv_cdf(1 - (1 - self.confidence) / tests)

    def margin(self, leader: Scores) -> float:
        """The difference of means that does not matter beside the leader's."""
        return self.tolerance * abs(float(leader.mean()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The winner's number, its scores, and what every candidate's mean is estimated to be on the winner's samples."""

    winner: int
    scores: Scores
    means: tuple[float, ...]
    decided: bool = True
    """Whether anything was better than anything else by more than the tolerance."""

    @property
    def mean(self) -> float:
        return float(self.scores.mean())


def race(
    count: int, blocks: Sequence[int], measure: Measure, rules: Rules, *, defended: Collection[int] = ()
) -> Outcome:
    """The best of `count` candidates: all on the first `blocks[0]` blocks of samples, the undecided on more.

    Candidate c is out when mean(s_leader - s_c) > z stderr: a paired test, one-sided, on the samples seen. The race
    ends when one is left, when nobody left can be better than the leader by more than the tolerance times the leader's
    mean, or after the last block. The leader is the first of the best. What is `defended` drops out by the test alone.
    """
    alive = list(range(count))
    scores: dict[int, Scores] = {c: np.empty(0) for c in alive}
    seen = 0
    for end in blocks:
        for c, more in zip(alive, measure(alive, seen, end), strict=True):
            scores[c] = np.concatenate([scores[c], more])
        seen, before = end, len(alive)
        leader = max(alive, key=lambda c: (scores[c].mean(), -c))
        z = rules.deviations(max(1, before - 1))
        bounds = {c: _bounds(scores[leader], scores[c], rules.unit, z) for c in alive if c != leader}
        alive = [c for c in alive if c == leader or bounds[c][0] <= 0]
        going_on = max(rules.least, int(np.ceil(rules.keep * before)))
        ranked = sorted(alive, key=lambda c: (-scores[c].mean(), c))
        alive = sorted({*ranked[:going_on], *(c for c in alive if c in defended)})
        if all(bounds[c][1] <= rules.margin(scores[leader]) for c in alive if c != leader):
            break
    best = scores[leader]
    means = tuple(float(best.mean() - (best[: s.size] - s).mean()) for s in scores.values())
    return Outcome(winner=leader, scores=best, means=means, decided=max(means) - min(means) > rules.margin(best))


def _bounds(leader: Scores, other: Scores, unit: float, z: float) -> tuple[float, float]:
    """How far the leader is ahead at least, and how far the other may be ahead at most, within z standard errors."""
    difference = (leader - other).astype(np.float64)
    count, ahead = difference.size, float(difference.mean())
    if count < 2:
        return -np.inf, np.inf
    variance = (float(((difference - ahead) ** 2).sum()) + unit**2) / (count - 1)
    error = z * float(np.sqrt(variance / count))
    return ahead - error, error - ahead
