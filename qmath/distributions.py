"""Laplace and Gaussian priors of a tensor, two-sided or rectified by a ReLU: densities, partial moments and fits.

Estimators, for points x_i with weights (counts):

* two-sided, likelihood: Laplace loc = median, scale = mean |x - loc|; Gaussian loc = mean, scale = standard
  deviation.
* two-sided, moments: loc = mean; Laplace scale = E|x - E x| (ACIQ, section 2), Gaussian scale = standard deviation.
* one-sided, likelihood: a point at zero only says that Z <= 0 (a censored sample; for the Gaussian, Tobit's model).
  The Laplace solution is in closed form; the Gaussian one is a concave problem in (1/scale, loc/scale), solved by
  Newton's method.
* one-sided, moments: ACIQ's fused ReLU: loc = 0, and from the positive points Laplace scale = E x, Gaussian scale =
  sqrt(E x^2).

A histogram cannot tell a zero from a tiny positive value: the bin that starts at zero counts as zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_parameter, check_choice
from qmath.late import LateModule
from qmath.sample import Sample, sample_of

special = LateModule("scipy.special")
Floats = NDArray[np.float64]
SQRT2 = float(np.sqrt(2.0))
SQRT2PI = float(np.sqrt(2.0 * np.pi))


@dataclass(frozen=True, slots=True, eq=False)
class Prior(ByContent, ABC):
    """A location-scale distribution Z = loc + scale * U, or its rectified form X = max(Z, 0) when `one_sided`.

    The rectified distribution is that of a ReLU's output: the probability of Z <= 0 becomes an atom at exactly zero,
    and the density of Z is kept, unscaled, for x > 0. With loc = 0 the atom weighs one half: the setting of ACIQ's
    fused ReLU (A.17-A.19). Use it through `qmath.Laplace` and `qmath.Gaussian`.

    `loc` and `scale` are in the units of x; scalars, or arrays that broadcast together (one distribution per channel).

    Raises:
        ValueError: Unless loc is finite, and scale finite and positive.

    Example:
        >>> import qmath
        >>> round(float(qmath.Gaussian(0.0, 2.0, one_sided=True).cdf(0.0)), 4)
        0.5
    """

    loc: Any = 0.0
    scale: Any = 1.0
    one_sided: bool = False

    def __post_init__(self) -> None:
        for name in ("loc", "scale"):
            value = as_parameter(getattr(self, name), f"{type(self).__name__} {name}", positive=name == "scale")
            object.__setattr__(self, name, frozen(value) if value.ndim else float(value))
        np.broadcast_shapes(np.shape(self.loc), np.shape(self.scale))

    def pdf(self, x: ArrayLike) -> Floats:
        """Return the density at x; for a one-sided prior that of the part above zero (the atom at zero has none).

        `x` broadcasts with loc and scale; the density is per unit of x.

        Example:
            >>> import qmath
            >>> qmath.Laplace(0.0, 0.5).pdf([-1.0, 0.0]).round(4).tolist()
            [0.1353, 1.0]
        """
        x = np.asarray(x, dtype=np.float64)
        density = self.unit_pdf((x - self.loc) / self.scale) / self.scale
        return np.where(x > 0, density, 0.0) if self.one_sided else np.asarray(density)

    def cdf(self, x: ArrayLike) -> Floats:
        """Return P(X <= x), the atom at zero included when one-sided; `x` broadcasts with loc and scale.

        Example:
            >>> import qmath
            >>> qmath.Gaussian().cdf([0.0, 1.96]).round(3).tolist()
            [0.5, 0.975]
        """
        x = np.asarray(x, dtype=np.float64)
        below = self.unit_tail(-(x - self.loc) / self.scale, 0)
        return np.where(x >= 0, below, 0.0) if self.one_sided else np.asarray(below)

    def sf(self, x: ArrayLike) -> Floats:
        """Return P(X > x), accurate far in the tail where 1 - cdf(x) is not; `x` broadcasts with loc and scale.

        Example:
            >>> import qmath
            >>> f"{float(qmath.Gaussian().sf(10.0)):.3g}"
            '7.62e-24'
        """
        x = np.asarray(x, dtype=np.float64)
        above = self.unit_tail((x - self.loc) / self.scale, 0)
        return np.where(x >= 0, above, 1.0) if self.one_sided else np.asarray(above)

    @property
    def positive_mass(self) -> Floats:
        """P(Z > 0): the mass of a rectified distribution that is not in the atom at zero."""
        return self.unit_tail(-np.asarray(self.loc) / self.scale, 0)

    def sample(self, size: int | tuple[int, ...], *, seed: int | np.random.Generator) -> Floats:
        """Draw independent values of shape `size`, which must broadcast with loc and scale; a seed fixes the draws.

        Example:
            >>> import qmath
            >>> x = qmath.Laplace(one_sided=True).sample(1000, seed=0)
            >>> x.shape, float(x.min())
            ((1000,), 0.0)
        """
        drawn = self.loc + self.scale * self._unit_sample(np.random.default_rng(seed), size)
        return np.maximum(drawn, 0.0) if self.one_sided else np.asarray(drawn)

    @classmethod
    def fit(
        cls,
        data: Any,
        *,
        one_sided: bool = False,
        method: Literal["likelihood", "moments"] = "likelihood",
        loc: float | None = None,
    ) -> Self:
        """Fit a member of the family to an array or a histogram; see `qmath.distributions` for the estimators.

        `method` is "likelihood" or "moments"; `loc` fixes the location.

        Raises:
            ValueError: For empty, non-finite or all-equal data, and for negative values with `one_sided`.

        Example:
            >>> import qmath
            >>> qmath.Laplace.fit([0.0, 1.0, 5.0])
            Laplace(loc=1.0, scale=1.6666666666666667, one_sided=False)
        """
        fitted_loc, scale = estimate(cls, data, one_sided=one_sided, method=method, loc=loc)
        return cls(fitted_loc, scale, one_sided)

    @staticmethod
    @abstractmethod
    def unit_pdf(u: ArrayLike) -> Floats:
        """Density of the unit distribution (loc 0, scale 1), symmetric about zero."""

    @staticmethod
    @abstractmethod
    def unit_tail(u: ArrayLike, order: Literal[0, 1, 2]) -> Floats:
        """E[(U - u)_+^order] of the unit distribution: survival function, stop-loss transform, squared excess."""

    @staticmethod
    @abstractmethod
    def _unit_sample(rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats: ...


@dataclass(frozen=True, slots=True, eq=False)
class Laplace(Prior):
    """The Laplace distribution, f(x) = exp(-|x - loc| / scale) / (2 scale); `scale` is the b of ACIQ.

    Its variance is 2 b^2. Arguments and errors as for `qmath.Prior`.

    Example:
        >>> import qmath
        >>> round(float(qmath.Laplace(0.0, 1.0).sf(3.0)), 4)
        0.0249
    """

    @staticmethod
    def unit_pdf(u: ArrayLike) -> Floats:
        return np.asarray(0.5 * np.exp(-np.abs(np.asarray(u, dtype=np.float64))))

    @staticmethod
    def unit_tail(u: ArrayLike, order: Literal[0, 1, 2]) -> Floats:
        u = np.asarray(u, dtype=np.float64)
        right = (0.5, 0.5, 1.0)[order] * np.exp(-np.abs(u))  # the value at |u|
        left = (1.0 - right, right - np.minimum(u, 0), np.minimum(u, 0) ** 2 + 2.0 - right)[order]
        return np.where(u >= 0, right, left)

    @staticmethod
    def _unit_sample(rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        return rng.laplace(size=size)


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian(Prior):
    """The Gaussian distribution, f(x) = exp(-(x - loc)^2 / (2 scale^2)) / (scale sqrt(2 pi)); `scale` is sigma.

    Arguments and errors as for `qmath.Prior`.

    Example:
        >>> import qmath
        >>> round(float(qmath.Gaussian(0.0, 1.0).sf(3.0)), 4)
        0.0013
    """

    @staticmethod
    def unit_pdf(u: ArrayLike) -> Floats:
        return np.asarray(np.exp(-0.5 * np.asarray(u, dtype=np.float64) ** 2) / SQRT2PI)

    @staticmethod
    def unit_tail(u: ArrayLike, order: Literal[0, 1, 2]) -> Floats:
        """E[(U - u)_+^order]: for u >= 0 the density times a function of Mills' ratio, which never turns negative."""
        u = np.asarray(u, dtype=np.float64)
        right = Gaussian._right_tail(np.abs(u), order)
        left = (1.0 - right, right - np.minimum(u, 0), np.minimum(u, 0) ** 2 + 1.0 - right)[order]
        return np.where(u >= 0, right, left)

    @staticmethod
    def _right_tail(u: Floats, order: int) -> Floats:
        """phi(u) J_k(u): J_0 = erfcx(u / sqrt 2) sqrt(pi / 2) is Mills' ratio, J_1 = 1 - u J_0, J_2 = J_0 - u J_1.

        From u = 4 on these differences would cancel; there the ratios r_k = J_k / J_{k-1} = k / (u + r_{k+1}) take
        over, a continued fraction of positive terms.
        """
        u = np.minimum(u, 40.0)  # phi(40) is zero in double precision
        mills = special.erfcx(u / SQRT2) * SQRT2PI / 2
        factor = mills
        if order:
            first = 1.0 - u * mills
            factor = (first, mills - u * first)[order - 1]
            far = u >= 4.0
            if np.any(far):
                ratio_1, ratio_2 = Gaussian._tail_ratios(u[far])
                factor = np.array(factor)
                factor[far] = mills[far] * ratio_1 * (ratio_2 if order == 2 else 1.0)
        return np.asarray(np.exp(-0.5 * u * u) / SQRT2PI * factor)

    @staticmethod
    def _tail_ratios(u: Floats) -> tuple[Floats, Floats]:
        """(J_1 / J_0, J_2 / J_1) for u >= 4, accurate to rounding."""
        ratio = (np.sqrt(u * u + 120.0) - u) / 2  # r_30, taken as equal to r_31
        for k in range(29, 1, -1):
            ratio = k / (u + ratio)
        return 1.0 / (u + ratio), ratio

    @staticmethod
    def _unit_sample(rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        return rng.standard_normal(size=size)


ACCEPTED_DISTANCE = 0.1  # at most a tenth of the mass may lie on the wrong side of any point


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorFit:
    """The prior that fits best, its Kolmogorov-Smirnov distance, and the other candidates, nearest first.

    `accepted` is False when even the best distance exceeds `qmath.distributions.ACCEPTED_DISTANCE` (0.1). That is a
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
            prior = family(*_estimate(family, sample, one_sided=side, method="likelihood", loc=None), side)
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


def estimate(family: type[Prior], data: Any, *, one_sided: bool, method: str, loc: float | None) -> tuple[float, float]:
    """(loc, scale) of the fitted member of `family`; the estimators are described in the docstring of the module."""
    check_choice(method, "method", ("likelihood", "moments"))
    return _estimate(family, sample_of(data), one_sided=one_sided, method=method, loc=loc)


def _estimate(
    family: type[Prior], sample: Sample, *, one_sided: bool, method: str, loc: float | None
) -> tuple[float, float]:
    if one_sided:
        return _censored(family, sample, method=method, loc=loc)
    x, weight = sample.points, sample.weights
    if loc is None:
        loc = _median(sample) if family is Laplace and method == "likelihood" else float(np.average(x, weights=weight))
    scale = _spread(family, x - loc, weight)
    if not scale > 0:
        raise ValueError(f"all {weight.sum():.0f} values equal {x[0]}: a {family.__name__} scale needs some spread")
    return loc, scale


def _spread(family: type[Prior], x: Floats, weight: Floats) -> float:
    if family is Laplace:
        return float(np.average(np.abs(x), weights=weight))
    return float(np.sqrt(np.average(x * x, weights=weight)))


def _median(sample: Sample) -> float:
    """Weighted median; within a bin of a histogram, linear in the count."""
    half = sample.total / 2
    reached = np.cumsum(sample.weights)
    at = int(np.searchsorted(reached, half))
    if sample.edges is None:
        return float(np.median(sample.points))
    inside = (half - (reached[at] - sample.weights[at])) / sample.weights[at]
    return float(sample.edges[at] + inside * (sample.edges[at + 1] - sample.edges[at]))


def _censored(family: type[Prior], sample: Sample, *, method: str, loc: float | None) -> tuple[float, float]:
    if sample.low < 0:
        raise ValueError(f"a one-sided prior needs non-negative data, found a minimum of {sample.low}")
    x, weight = sample.points, sample.weights
    start = 0.0  # values up to here are censored
    if sample.edges is not None and sample.low == 0:
        start = float(sample.edges[1])
    above = x > start
    zeros, positives = float(weight[~above].sum()), float(weight[above].sum())
    if positives == 0:
        raise ValueError("no positive value: a one-sided prior cannot be fitted to zeros alone")
    if loc is not None or method == "moments":
        loc = 0.0 if loc is None else loc
        return loc, _spread(family, x[above] - loc, weight[above])
    excess, mass = x[above] - start, weight[above]
    if family is Laplace:
        censored_loc, scale = _censored_laplace(excess, mass, zeros)
    else:
        censored_loc, scale = _censored_gaussian(excess, mass, zeros)
    if not (scale > 0 and np.isfinite(scale)):
        raise ValueError(f"all positive values equal {x[above][0]}: a {family.__name__} scale needs some spread")
    return censored_loc + start, scale


def _censored_laplace(x: Floats, weight: Floats, zeros: float) -> tuple[float, float]:
    """The Laplace likelihood in closed form.

    Mostly zeros: loc <= 0, and an exponential tail of mass exp(loc / b) / 2. Otherwise loc is the median, zeros
    included.
    """
    positives = float(weight.sum())
    share = positives / (positives + zeros)
    if share <= 0.5:
        scale = float(np.average(x, weights=weight))
        return scale * float(np.log(2 * share)), scale
    half = (positives + zeros) / 2
    loc = float(x[np.searchsorted(np.cumsum(weight) + zeros, half)])
    return loc, float((weight @ np.abs(x - loc) + zeros * loc) / positives)


def _censored_gaussian(x: Floats, weight: Floats, zeros: float) -> tuple[float, float]:
    """Maximise n0 log Phi(-d) + n log g - sum (g x - d)^2 / 2 over g = 1/scale, d = loc/scale.

    The function is concave (Olsen, 1978).
    """
    n, first, second = float(weight.sum()), float(weight @ x), float(weight @ (x * x))

    def value(g: float, d: float) -> float:
        if g <= 0:
            return -np.inf
        fit = 0.5 * (g * g * second - 2 * g * d * first + n * d * d)
        return float(zeros * special.log_ndtr(-d) + n * np.log(g) - fit)

    g, d = float(np.sqrt(n / second)), 0.0
    for _ in range(100):
        hazard = float(np.exp(-0.5 * d * d - special.log_ndtr(-d)) / np.sqrt(2 * np.pi))
        gradient = np.array([n / g - g * second + d * first, -zeros * hazard + g * first - n * d])
        hessian = np.array([[n / g**2 + second, -first], [-first, n + zeros * hazard * (hazard - d)]])
        step = np.linalg.solve(hessian, gradient)
        if float(gradient @ step) <= 1e-14 * n:  # one last full step: a rise would be lost in rounding
            g, d = g + step[0], d + step[1]
            break
        size, now = 1.0, value(g, d)
        while value(g + size * step[0], d + size * step[1]) < now and size > 1e-10:
            size /= 2
        g, d = g + size * step[0], d + size * step[1]
        if abs(step[0]) <= 1e-13 * g and abs(step[1]) <= 1e-13 * (1 + abs(d)):
            break
    return d / g, 1 / g
