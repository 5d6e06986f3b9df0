"""ACIQ's range from moments, for many data sets at once (ACIQ, sections 2 and A.1-A.4).

The candidates are the Laplace and Gaussian distributions with the moments of the data:

* one-sided grids: the rectified distribution max(loc + scale U, 0) with the mean and mean square of max(X, 0);
* other grids: the distribution about the mean (scale E|X - mean|, or the standard deviation), and the same rectified
  one with the smallest value in place of zero, for data that end there abruptly (after SiLU or HardSwish).

Each is clipped at its analytic optimum, and the candidate whose range has the least error on the data is taken: one
evaluation each, exact up to the width of a bin (`qmath.stop_loss`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_bits
from qmath.clipping import gauss_clip, laplace_clip, prior_clip
from qmath.distributions import Gaussian, Laplace, Prior
from qmath.fitting import rectified_prior
from qmath.histogram import Histogram
from qmath.sample import Floats, sample_of
from qmath.stop_loss import StopLoss

FAMILIES: tuple[type[Prior], ...] = (Laplace, Gaussian)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PriorRanges:
    """Ranges low..high (units of x), their mean squared errors, and about the least error of any range (squared units).

    All four are arrays of shape (n,); see `qmath.prior_ranges`.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> zero = np.zeros(1)
        >>> qmath.PriorRanges(low=zero, high=zero + 3, error=zero + 0.1, least=zero + 0.1).high.tolist()
        [3.0]
    """

    low: Floats
    high: Floats
    error: Floats
    least: Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moments:
    """Moments of n data sets in the units of x (squared for squares), as arrays of shape (n,).

    The mean, mean square, mean distance from the mean, smallest and largest value; mean and mean square of max(X, 0).
    """

    mean: Floats
    square: Floats
    spread: Floats
    low: Floats
    high: Floats
    positive_mean: Floats
    positive_square: Floats

    @classmethod
    def of(cls, stop_loss: StopLoss) -> Moments:
        """The moments of one data set, as arrays of shape (1,)."""
        above, below = stop_loss.above, stop_loss.below
        mean = above.mean - below.mean
        side = above if mean >= 0 else below
        spread = 2 * float(side.excess(np.asarray(abs(mean))))
        numbers = mean, stop_loss.energy, spread, -below.end, above.end, above.mean, above.energy
        return cls(**{name: np.array([float(v)]) for name, v in zip(cls.__slots__, numbers, strict=True)})

    @classmethod
    def together(cls, parts: Sequence[Moments]) -> Moments:
        """The moments of all parts in one."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__})


def prior_ranges(histograms: Sequence[Histogram], *, bits: ArrayLike, one_sided: ArrayLike) -> PriorRanges:
    """Choose ACIQ's range for each histogram; also return its error, and about the least error of any range.

    `bits` and `one_sided` (ranges 0..c with 2^bits levels, otherwise affine ones) are one for all histograms or one for
    each. Source: ACIQ, sections 2 and A.1-A.4; see `qmath.prior_clipping`.

    Raises:
        ValueError: For bits outside 1..16, data without spread, or no positive value where ranges are one-sided.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> histogram = qmath.Histogram.of(np.random.default_rng(0).laplace(size=100_000))
        >>> ranges = qmath.prior_ranges([histogram], bits=4, one_sided=False)
        >>> ranges.low.round(1).tolist(), ranges.high.round(1).tolist()
        ([-5.0], [5.0])
    """
    found = [StopLoss.of(sample_of(histogram)) for histogram in histograms]
    n = len(found)
    bits = np.broadcast_to(as_bits(bits), n)
    sides = np.broadcast_to(np.asarray(one_sided, bool), n)
    moments = Moments.together([Moments.of(stop_loss) for stop_loss in found])
    low, high = candidates(moments, bits, sides, FAMILIES)
    levels = 2 ** bits.astype(np.int64) - 1
    errors, least = np.empty(low.shape), np.empty(n)
    for i, stop_loss in enumerate(found):
        steps = (high[i] - low[i]) / levels[i]
        below = np.rint(-low[i] / steps).astype(int)
        for k, (step, under) in enumerate(zip(steps.tolist(), below.tolist(), strict=True)):
            errors[i, k] = stop_loss.error(step, int(levels[i]) - under, under)
        least[i] = _least(histograms[i], int(levels[i]), bool(sides[i]))
    best = np.arange(n), errors.argmin(axis=1)
    return PriorRanges(low=low[best], high=high[best], error=errors[best], least=least)


@functools.lru_cache(maxsize=4096)  # plans are made again and again from the same histograms
def _least(histogram: Histogram, levels: int, one_sided: bool) -> float:
    return StopLoss.of(sample_of(histogram)).least_error(levels, symmetric=False, one_sided=one_sided)


def candidates(
    moments: Moments, bits: NDArray[np.floating], one_sided: NDArray[np.bool_], families: Sequence[type[Prior]]
) -> tuple[Floats, Floats]:
    """(low, high) of shape (n, candidates), zero included; for one-sided grids, the candidates of a family coincide."""
    floor = np.where(one_sided, 0.0, moments.low)
    mean = np.where(one_sided, moments.positive_mean, moments.mean - floor)
    square = np.where(one_sided, moments.positive_square, moments.square - floor * (2 * moments.mean - floor))
    if not (mean > 0).all():
        raise ValueError("no positive value, or no spread: there is no range to choose")
    std = np.sqrt(np.maximum(moments.square - moments.mean**2, 0.0))
    low, high = [], []
    for family in families:
        clip = prior_clip(rectified_prior(family, mean, np.maximum(square, mean**2)), bits)
        low.append(floor)
        high.append(np.minimum(floor + clip, moments.high))
        if not one_sided.all():
            scale = np.where(one_sided, 1.0, moments.spread if family is Laplace else std)
            clip = (laplace_clip if family is Laplace else gauss_clip)(scale, bits)
            low.append(np.where(one_sided, low[-1], np.maximum(moments.mean - clip, moments.low)))
            high.append(np.where(one_sided, high[-1], np.minimum(moments.mean + clip, moments.high)))
    return np.minimum(np.stack(low, axis=1), 0.0), np.maximum(np.stack(high, axis=1), 0.0)
