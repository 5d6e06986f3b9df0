"""Location and scale of a Laplace or Gaussian prior, from points x_i with weights (counts).

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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qmath._validation import check_choice
from qmath.late import LateModule
from qmath.sample import Floats, Sample, sample_of

special = LateModule("scipy.special")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimators:
    """How one family is fitted.

    `center` is the location of greatest likelihood of two-sided data, `spread` the scale of deviations from a location,
    and `censored` the (loc, scale) of greatest likelihood of positive values beside a weight of zeros.
    """

    family: str
    center: Callable[[Sample], float]
    spread: Callable[[Floats, Floats], float]
    censored: Callable[[Floats, Floats, float], tuple[float, float]]

    def __call__(self, data: Any, *, one_sided: bool, method: str, loc: float | None) -> tuple[float, float]:
        """(loc, scale) of the member of the family that fits an array or a histogram; `loc` may be fixed."""
        check_choice(method, "method", ("likelihood", "moments"))
        sample = sample_of(data)
        if one_sided:
            return self._one_sided(sample, method, loc)
        if loc is None:
            loc = self.center(sample) if method == "likelihood" else _mean(sample)
        scale = self.spread(sample.points - loc, sample.weights)
        if not scale > 0:
            same = f"all {sample.total:.0f} values equal {sample.points[0]}"
            raise ValueError(f"{same}: a {self.family} scale needs some spread")
        return loc, scale

    def _one_sided(self, sample: Sample, method: str, loc: float | None) -> tuple[float, float]:
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
            return loc, self.spread(x[above] - loc, weight[above])
        censored_loc, scale = self.censored(x[above] - start, weight[above], zeros)
        if not (scale > 0 and np.isfinite(scale)):
            raise ValueError(f"all positive values equal {x[above][0]}: a {self.family} scale needs some spread")
        return censored_loc + start, scale


def _mean(sample: Sample) -> float:
    return float(np.average(sample.points, weights=sample.weights))


def _mean_magnitude(x: Floats, weight: Floats) -> float:
    return float(np.average(np.abs(x), weights=weight))


def _root_mean_square(x: Floats, weight: Floats) -> float:
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


LAPLACE = Estimators(family="Laplace", center=_median, spread=_mean_magnitude, censored=_censored_laplace)
GAUSSIAN = Estimators(family="Gaussian", center=_mean, spread=_root_mean_square, censored=_censored_gaussian)
