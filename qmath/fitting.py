"""Choose the prior that fits a tensor best, and the one that has given moments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qmath._validation import as_parameter
from qmath.distributions import Gaussian, Laplace, Prior
from qmath.sample import Floats, sample_of

ACCEPTED_DISTANCE = 0.1  # at most a tenth of the mass may lie on the wrong side of any point


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorFit:
    """The prior that fits best, its Kolmogorov-Smirnov distance, and the other candidates, nearest first.

    `accepted` is False when even the best distance exceeds `qmath.fitting.ACCEPTED_DISTANCE` (0.1). That is a
    practical threshold, not a significance level: with the millions of values of an activation, a test would reject
    every distribution.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> fit = qmath.fit_prior(np.random.default_rng(0).normal(size=10_000))
        >>> type(fit.prior).__name__, fit.accepted, len(fit.alternatives)
        ('Gaussian', True, 1)
    """

    prior: Prior
    distance: float
    accepted: bool
    alternatives: tuple[tuple[Prior, float], ...]


def fit_prior(data: Any, *, one_sided: bool | None = None) -> PriorFit:
    """Fit Laplace and Gaussian by maximum likelihood and choose the nearest in Kolmogorov-Smirnov distance.

    The distance is sup |F_n - F|, in [0, 1]. `data` is an array of any shape, or a histogram. `one_sided` True tries
    the rectified distributions, False the two-sided ones; None tries both when no value is negative.

    Raises:
        ValueError: For empty, non-finite or all-equal data, or negative values with `one_sided`.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> fit = qmath.fit_prior(np.random.default_rng(0).laplace(scale=0.5, size=100_000))
        >>> type(fit.prior).__name__, round(fit.prior.scale, 2), fit.accepted
        ('Laplace', 0.5, True)
    """
    sample = sample_of(data)
    sides: tuple[bool, ...] = (False,) if one_sided is None else (one_sided,)
    if one_sided is None and sample.low >= 0:
        sides = (False, True)
    fits = []
    for family in (Laplace, Gaussian):
        for side in sides:
            prior = family.fit(sample, one_sided=side)
            fits.append((prior, goodness_of_fit(prior, sample)))
    fits.sort(key=lambda fit: fit[1])
    (best, distance), *rest = fits
    return PriorFit(prior=best, distance=distance, accepted=distance <= ACCEPTED_DISTANCE, alternatives=tuple(rest))


def rectified_prior(family: type[Prior], mean: ArrayLike, second: ArrayLike) -> Prior:
    """Return the one-sided priors with the given means E[X] and second moments E[X^2], X = max(loc + scale U, 0).

    E[X] = scale T_1(-t) and E[X^2] = scale^2 T_2(-t) with t = loc / scale and T_k the tail moments of the unit
    distribution. E[X]^2 / E[X^2] rises with t from 0 to 1 and so gives t (from a table, to about 1e-6 in the ratio),
    and then the scale. `mean` (units of x) and `second` (squared units) broadcast.

    Raises:
        ValueError: Unless 0 < mean^2 <= second.

    Example:
        >>> import qmath
        >>> prior = qmath.rectified_prior(qmath.Laplace, 0.5, 1.0)
        >>> round(float(prior.loc), 3), round(float(prior.scale), 3)
        (0.0, 1.0)
    """
    first, square = as_parameter(mean, "mean", positive=True), as_parameter(second, "second", positive=True)
    if np.any(first * first > square * (1 + 1e-9)):
        raise ValueError("second must be at least mean^2: it is the mean of squares")
    t, log_ratio = _ratio_table(family)
    ratio = np.interp(np.log(first * first / square), log_ratio, t)
    scale = np.sqrt(square / family.unit_tail(-ratio, 2))
    return family(ratio * scale, scale, True)


@cache
def _ratio_table(family: type[Prior]) -> tuple[Floats, Floats]:
    """t = loc / scale and log(T_1(-t)^2 / T_2(-t)), which rises with t."""
    t = np.concatenate([np.linspace(-30, 8, 20_000), np.geomspace(8.001, 1e4, 2_000)])
    return t, 2 * np.log(family.unit_tail(-t, 1)) - np.log(family.unit_tail(-t, 2))


def goodness_of_fit(prior: Prior, data: Any) -> float:
    """Return the Kolmogorov-Smirnov distance sup |F_n(x) - F(x)| between data and a prior, in [0, 1].

    `data` is an array of any shape, or a histogram, whose bin edges are then compared.

    Raises:
        ValueError: For empty or non-finite data.

    Example:
        >>> import qmath
        >>> round(qmath.goodness_of_fit(qmath.Laplace(), [-1.0, 0.0, 1.0]), 4)
        0.1839
    """
    sample = sample_of(data)
    if sample.edges is not None:
        seen = np.cumsum(sample.weights) / sample.total
        gaps = np.abs(seen - prior.cdf(sample.edges[1:]))
        before = 0.0 if sample.low >= 0 and prior.one_sided else float(prior.cdf(sample.low))
        return float(max(gaps.max(), before))
    values, counts = np.unique(sample.points, return_counts=True)
    seen = np.cumsum(counts) / values.size if counts.max() == 1 else np.cumsum(counts) / sample.total
    at = prior.cdf(values)
    just_below = np.where(values == 0, 0.0, at) if prior.one_sided else at
    left = np.concatenate(([0.0], seen[:-1]))
    return float(max(np.abs(seen - at).max(), np.abs(left - just_below).max()))
