"""Racing: measure candidates on few samples first, and continue with those that may still win."""

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
    """When a candidate drops out: the `confidence` of the tests, and the share `tolerance` of the objective to ignore.

    The leader is the best of many, so the `confidence` of a round is divided among its tests (Bonferroni). If samples
    can only differ by multiples of `unit`, the test counts one more sample that differs by it, so that a few equal
    answers do not pass for certainty. At most the best share `keep` of the candidates, but at least `least` of them, go
    on to the next round; with a share of 1, the tests alone decide.
    """

    confidence: float
    tolerance: float
    unit: float = 0.0
    keep: float = 1.0
    least: int = 8

    def deviations(self, tests: int) -> float:
        """By how many standard errors a mean must differ from zero, for so many simultaneous tests."""
        return NormalDist().inv_cdf(1 - (1 - self.confidence) / tests)

    def margin(self, leader: Scores) -> float:
        """The difference of means to ignore, given the leader's scores."""
        return self.tolerance * abs(float(leader.mean()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The winner's number and scores, and the estimated mean of every candidate on the winner's samples."""

    winner: int
    scores: Scores
    means: tuple[float, ...]
    decided: bool = True
    """Whether some candidate was better than another by more than the tolerance."""

    @property
    def mean(self) -> float:
        return float(self.scores.mean())


def race(
    count: int, blocks: Sequence[int], measure: Measure, rules: Rules, *, defended: Collection[int] = ()
) -> Outcome:
    """Find the best of `count` candidates: measure all on the first `blocks[0]` blocks, and the undecided on more.

    Candidate c drops out when mean(s_leader - s_c) > z stderr, a paired one-sided test on the samples seen. The race
    ends when one candidate is left, when none can be better than the leader by more than the tolerance times the
    leader's mean, or after the last block. Ties go to the first. Candidates in `defended` only drop out by the test.
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
    """The least lead of the leader and the largest possible lead of the other, within z standard errors."""
    difference = (leader - other).astype(np.float64)
    count, ahead = difference.size, float(difference.mean())
    if count < 2:
        return -np.inf, np.inf
    variance = (float(((difference - ahead) ** 2).sum()) + unit**2) / (count - 1)
    error = z * float(np.sqrt(variance / count))
    return ahead - error, error - ahead
