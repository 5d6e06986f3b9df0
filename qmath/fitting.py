"""Choose the prior that fits a tensor best, and the one that has given moments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qmath._validation import as_bit_count, as_parameter
from qmath.clipping import prior_clip
from qmath.distributions import Gaussian, HasPrior, Laplace, Prior, as_prior
from qmath.error import expected_error, midrise_levels
from qmath.sample import Floats, Sample, sample_of

ACCEPTED_DISTANCE = 0.1  # at most a tenth of the mass may lie on the wrong side of any point
MISLEADING = 2.0  # an error that is so many times the expected one, or the inverse
WIDTHS = tuple(range(2, 9))  # bits for which a fit knows the error of its data


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PriorFit:
    """The prior that fits best, its Kolmogorov-Smirnov distance, and the other candidates, nearest first.

    The distance sees the bulk of the data, and the error of many bits is decided in the tails: a Laplace that is within
    0.03 of Student's t with 4 degrees of freedom predicts a twentieth of its error at 8 bits. So a fit also knows the
    ratio of the error of its data to `expected_error`, both at the prior's optimal clip: `error_ratio(bits)`, and the
    widths from 2 to 8 at which they agree within a factor of two, `holds_at`.

    `accepted` is False when the distance exceeds `qmath.fitting.ACCEPTED_DISTANCE` (0.1), when the fit holds at no
    width, or not at the `bits` that it was asked for. That is a practical threshold, not a significance level: with the
    millions of values of an activation, a test would reject every distribution.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> fit = qmath.fit_prior(np.random.default_rng(0).normal(size=10_000))
        >>> type(fit.prior).__name__, fit.accepted, len(fit.alternatives)
        ('Gaussian', True, 1)
        >>> heavy = qmath.fit_prior(np.random.default_rng(0).standard_t(4, size=100_000), bits=8)
        >>> heavy.accepted, heavy.holds_at, round(heavy.error_ratio(8), 1)
        (False, (2, 3), 22.3)
    """

    prior: Prior
    distance: float
    accepted: bool
    alternatives: tuple[tuple[Prior, float], ...]
    error_ratios: tuple[float, ...] = ()
    """The error of the data over the expected one, at 2, 3, ... 8 bits."""

    def error_ratio(self, bits: int) -> float:
        """The error of the data over `expected_error`, both at the prior's clip for `bits` (2..8).

        Raises:
            ValueError: For bits outside 2..8.
        """
        return self.error_ratios[as_bit_count(bits, low=WIDTHS[0], high=WIDTHS[-1]) - WIDTHS[0]]

    @property
    def holds_at(self) -> tuple[int, ...]:
        """The widths at which the data's error is within a factor of two of the expected one."""
        return tuple(bits for bits in WIDTHS if _agrees(self.error_ratio(bits)))

    def __repr__(self) -> str:
        held = ", ".join(map(str, self.holds_at)) or "no"
        worst = max(WIDTHS, key=lambda bits: abs(np.log(max(self.error_ratio(bits), 1e-12))))
        wrong = "" if _agrees(self.error_ratio(worst)) else f", {self.error_ratio(worst):.3g} times it at {worst}"
        judged = "accepted" if self.accepted else "not accepted"
        prior = f"{type(self.prior).__name__}(loc={self.prior.loc:.3g}, scale={self.prior.scale:.3g})"
        said = f"{prior}{', one-sided' if self.prior.one_sided else ''}, distance={self.distance:.3g}, {judged}"
        return f"PriorFit({said}; error as expected at {held} bits{wrong})"


def _agrees(ratio: float) -> bool:
    return bool(1 / MISLEADING <= ratio <= MISLEADING)


def fit_prior(data: Any, *, one_sided: bool | None = None, bits: int | None = None) -> PriorFit:
    """Fit Laplace and Gaussian by maximum likelihood and choose the nearest in Kolmogorov-Smirnov distance.

    The distance is sup |F_n - F|, in [0, 1]. `data` is an array of any shape, or a histogram. `one_sided` True tries
    the rectified distributions, False the two-sided ones; None tries both when no value is negative. With `bits`
    (2..8), a fit is accepted only if it also predicts the data's error at that width (`PriorFit.holds_at`).

    Raises:
        ValueError: For empty, non-finite or all-equal data, negative values with `one_sided`, bits outside 2..8.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> fit = qmath.fit_prior(np.random.default_rng(0).laplace(scale=0.5, size=100_000))
        >>> type(fit.prior).__name__, round(fit.prior.scale, 2), fit.accepted
        ('Laplace', 0.5, True)
    """
    wanted = () if bits is None else (as_bit_count(bits, low=WIDTHS[0], high=WIDTHS[-1]),)
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
    ratios = _error_ratios(best, sample)
    holds = [width for width, ratio in zip(WIDTHS, ratios, strict=True) if _agrees(ratio)]
    accepted = distance <= ACCEPTED_DISTANCE and bool(holds) and {*wanted} <= {*holds}
    return PriorFit(prior=best, distance=distance, accepted=accepted, alternatives=tuple(rest), error_ratios=ratios)


def _error_ratios(prior: Prior, sample: Sample) -> tuple[float, ...]:
    """The error of the sample over that of the prior, at the prior's clip on its mid-rise grid, for each of `WIDTHS`.

    Within a cell with level q it is sum w (x - q)^2 = S_2 - 2 q S_1 + q^2 S_0, from running sums over sorted points.
    A one-sided prior has zero as a point of its own, without error; in a histogram, it is the bin that starts there.
    """
    starts = sample.points if sample.edges is None else sample.edges[:-1]
    inside = starts > 0 if prior.one_sided else np.ones(starts.size, bool)
    x, weight = sample.points[inside] - (0.0 if prior.one_sided else float(prior.loc)), sample.weights[inside]
    sums = [np.concatenate(([0.0], np.cumsum(weight * x**power))) for power in (0, 1, 2)]
    ratios = []
    for bits in WIDTHS:
        clip = float(prior_clip(prior, bits))
        levels = midrise_levels(clip, bits, relu=prior.one_sided)
        ends = np.concatenate(([0], np.searchsorted(x, (levels[1:] + levels[:-1]) / 2), [x.size]))
        count, first, second = (np.diff(total[ends]) for total in sums)
        error = float(np.sum(second - 2 * levels * first + levels**2 * count)) / sample.total
        ratios.append(max(error, 0.0) / float(expected_error(prior, clip, bits)))
    return tuple(ratios)


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


def goodness_of_fit(prior: Prior | HasPrior, data: Any) -> float:
    """Return the Kolmogorov-Smirnov distance sup |F_n(x) - F(x)| between data and a prior, in [0, 1].

    `data` is an array of any shape, or a histogram, whose bin edges are then compared.

    Raises:
        ValueError: For empty or non-finite data.

    Example:
        >>> import qmath
        >>> round(qmath.goodness_of_fit(qmath.Laplace(), [-1.0, 0.0, 1.0]), 4)
        0.1839
    """
    prior, sample = as_prior(prior), sample_of(data)
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
