"""What a sample of predictions proves about all predictions: exact confidence in what quantization loses.

Two networks answer the same `count` samples. `lost` are those that the first one has right and the second has wrong,
`gained` those where it is the other way round. Samples on which both agree say nothing about the difference except that
they are many, so the pairs are a trinomial with probabilities p_lost, p_gained and the rest, and the loss of accuracy
in the whole population is

    drop = p_lost - p_gained

Whether a drop of at least delta could have given what was seen is asked of the score statistic (Tango, Statistics in
Medicine 17, 1998)

    z = (lost - gained - count delta) / sqrt(count (p_lost + p_gained - delta^2)),    p_lost - p_gained = delta

whose probabilities are the most likely ones under that condition, in closed form. P(z <= observed) is summed exactly:
with the rate of disagreement d = p_lost + p_gained known, m = lost + gained ~ Binomial(count, d), and given m, lost ~
Binomial(m, (d + delta) / 2d). As d is not known, the greatest tail over all d up to an upper confidence bound (Clopper
and Pearson) is taken, and the chance that d is above the bound is added: an exact test (Berger and Boos, P values
maximized over a confidence set for the nuisance parameter, JASA 89, 1994).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import beta, binom

MISS = 0.002  # the chance that the disagreement is above its bound
_CANDIDATES = 25  # rates of disagreement that are tried; the tail is smooth in them
_NEGLIGIBLE = 1e-12  # a tail of the number of disagreements of this weight is left out, and added
_SLACK = 1e-9  # of two equal statistics, computed in different ways


def drop_confidence(lost: int, gained: int, count: int, *, drop: float) -> float:
    """The confidence, in 0..1, with which the population loses less than `drop` of its accuracy.

    1 - p of the exact test described above. A claim accepted at confidence c is wrong for at most a share 1 - c of
    all samples that could have been drawn, whatever the networks.

    Args:
        lost: samples that only the first network (the float one) has right.
        gained: samples that only the second (the quantized one) has right.
        count: all samples.
        drop: the claimed bound, as a fraction: 0.005 is half a point.

    Raises:
        ValueError: the counts are not possible, or `drop` is not within -1..1.

    Example:
        >>> from qmath import drop_confidence
        >>> round(drop_confidence(40, 30, 10_000, drop=0.005), 4)
        0.998
        >>> round(drop_confidence(40, 30, 10_000, drop=0.001), 2)
        0.41
    """
    _check(lost, gained, count)
    if not -1 <= drop <= 1:
        raise ValueError(f"drop must be a fraction from -1 to 1, not {drop}; half a point is 0.005")
    if drop == 1:
        return 1.0
    highest = 1 - share_bound(count - lost - gained, count, confidence=1 - MISS)
    if drop > highest:
        return 1 - MISS
    rates = np.linspace(max(drop, 0), highest, _CANDIDATES)
    most = int(binom.ppf(1 - _NEGLIGIBLE, count, highest))
    reached = _reached(float(_score(lost, gained, count, drop)), most, count, drop)
    tail = max(_tail(reached, count, rate, max(drop, -rate)) for rate in rates)
    return float(max(1 - tail - MISS, 0.0))


def drop_bound(lost: int, gained: int, count: int, *, confidence: float = 0.95) -> float:
    """The least loss of accuracy that the samples exclude: an upper confidence bound of p_lost - p_gained.

    The root of `drop_confidence(drop) = confidence`, a fraction. Arguments as there.

    Raises:
        ValueError: the counts are not possible, or `confidence` is not within 0.5..0.999.

    Example:
        >>> from qmath import drop_bound
        >>> round(drop_bound(40, 30, 10_000), 5)
        0.00244
    """
    _check(lost, gained, count)
    if not 0.5 <= confidence <= 0.999:
        raise ValueError(f"confidence must lie between 0.5 and 0.999, not {confidence}")
    observed = (lost - gained) / count
    if drop_confidence(lost, gained, count, drop=observed) >= confidence:
        return observed
    return float(brentq(lambda d: drop_confidence(lost, gained, count, drop=d) - confidence, observed, 1, xtol=1e-7))


def share_confidence(hits: int, count: int, *, share: float) -> float:
    """The confidence, in 0..1, with which at least `share` of the population are hits.

    1 - P(X >= hits) for X ~ Binomial(count, share): the exact one-sided test of a proportion.

    Raises:
        ValueError: the counts are not possible, or `share` is not within 0..1.

    Example:
        >>> from qmath import share_confidence
        >>> round(share_confidence(99, 100, share=0.95), 3)
        0.963
    """
    _check(hits, 0, count)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be a fraction from 0 to 1, not {share}")
    return float(binom.cdf(hits - 1, count, share)) if share > 0 else 1.0


def share_bound(hits: int, count: int, *, confidence: float = 0.95) -> float:
    """The greatest share of hits in the population that the samples leave sure: Clopper and Pearson's lower bound.

    Raises:
        ValueError: the counts are not possible, or `confidence` is not within 0..1.

    Example:
        >>> from qmath import share_bound
        >>> round(share_bound(100, 100), 4)
        0.9705
    """
    _check(hits, 0, count)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return float(beta.ppf(1 - confidence, hits, count - hits + 1)) if hits else 0.0


def _score(lost: ArrayLike, gained: ArrayLike, count: int, drop: float) -> NDArray[np.float64]:
    """Tango's statistic z; 0 where nothing was seen and nothing is claimed."""
    lost, gained = np.asarray(lost, float), np.asarray(gained, float)
    linear = (2 * count - lost + gained) * drop - lost - gained
    root = np.sqrt(np.maximum(linear**2 + 8 * count * gained * drop * (1 - drop), 0))
    p_gained = (root - linear) / (4 * count)
    spread = np.sqrt(np.maximum(count * (2 * p_gained + drop * (1 - drop)), 0))
    excess = lost - gained - count * drop
    return np.divide(excess, spread, out=np.zeros_like(excess * spread), where=spread > 0)


def _reached(observed: float, most: int, count: int, drop: float) -> NDArray[np.int64]:
    """For m = 0, ..., `most` disagreements, how many of them may be losses for z to be at most `observed`; -1: none.

    z grows with the losses, so this is a bisection.
    """
    disagree = np.arange(most + 1)
    low, high = np.full(most + 1, -1), disagree.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = _score(middle, disagree - middle, count, drop) <= observed + _SLACK
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def _tail(reached: NDArray[np.int64], count: int, rate: float, drop: float) -> float:
    """P(z <= observed) where a share `rate` disagrees and a share `drop` is lost on balance."""
    disagree = np.arange(len(reached))
    losing = min(max((rate + drop) / (2 * rate), 0.0), 1.0) if rate > 0 else 0.0
    weights = binom.pmf(disagree, count, rate)
    return float(weights @ binom.cdf(reached, disagree, losing)) + _NEGLIGIBLE


def _check(lost: int, gained: int, count: int) -> None:
    if count < 1 or min(lost, gained) < 0 or lost + gained > count or any(map(_is_fraction, (lost, gained, count))):
        raise ValueError(f"of {count} samples, {lost} and {gained} cannot differ: counts are whole numbers within them")


def _is_fraction(number: float) -> bool:
    return not math.isfinite(number) or int(number) != number
