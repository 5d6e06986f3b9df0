"""Outlier channels of a matrix product: how to share the error of rounding between its two factors.

A product is the same when channel k of x is divided by a factor and row k of W is multiplied with it:

    y = x W = (x / s) (s W)

Rounding x / s on one grid (step a), and s W on a grid per column (steps b_c), adds to the outputs the noise

    N(s) = a^2 / 12  sum_k s_k^2 |W_k|^2  +  sum_c b_c^2 / 12  sum_k v_k / s_k^2                                     (1)
    a = (max_k high_k / s_k - min_k low_k / s_k) / (2^p - 1),        b_c = 2 max_k s_k |W_kc| / (2^q - 1)

with v_k the variance of channel k (what its mean adds is constant, and corrected in the bias). In u = log s, every
maximum and every sum in (1) is one of exponentials of linear functions of u. Such functions are log-convex, and so are
their products and sums: N has one minimum along every line. The line here is

    s_k = r_k^e,      r_k = max(|low_k|, |high_k|)

from e = 0, nothing moved, to e = 1, all channels of x equally wide. SmoothQuant (Xiao et al., 2023) sets e = 1/2 for
all layers and divides by powers of the weights as well; which e is best depends on how far outliers stand out.

A channel whose x and whose weights are both far larger than the others can be moved to neither side. It is left out:
multiplied in floating point on its own, it costs one column (LLM.int8, Dettmers et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_bit_count, as_parameter
from qmath.late import LateModule

optimize = LateModule("scipy.optimize")
_LEAST = 1e-3  # of the widest channel: narrower ones are taken for as wide
_MOST_LEFT_OUT = 4
_WORTH = 0.8  # of the noise: a channel is left out where no more is left without it


@dataclass(frozen=True, slots=True)
class Balance:
    """Factors by which rows of a weight are multiplied and channels of x divided; 0 for a channel left out.

    `factors` has shape (K,). `exponent` is e of s_k = r_k^e; `noise` and `plain_noise` are N of Eq. 1 in
    `qmath.balancing`, with the factors and without them, in the squared units of the outputs.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> qmath.Balance(factors=np.ones(2), exponent=0.0, noise=0.1, plain_noise=0.1).factors.tolist()
        [1.0, 1.0]
    """

    factors: NDArray[np.float64]
    exponent: float
    noise: float
    plain_noise: float


def balance_channels(
    low: ArrayLike, high: ArrayLike, variance: ArrayLike, weight: ArrayLike, *, bits: int = 8, weight_bits: int = 8
) -> Balance:
    """Return the factors with the least noise, Eq. 1 of `qmath.balancing`, along s_k = r_k^e.

    `low`, `high` and `variance` describe the K channels of x, shape (K,), in the units of x and their square; `weight`
    is K x C. `bits` and `weight_bits` are those of the two grids. Up to 4 channels are left out, if each takes away a
    fifth of the noise. The factors have a geometric mean of 1. Source: after SmoothQuant (Xiao et al., 2023).

    Raises:
        ValueError: For shapes that do not fit, NaN, infinities, and negative variances.
        TypeError: For anything but real numbers.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> weight = np.ones((4, 2))
        >>> found = qmath.balance_channels([-1, -1, -1, -16], [1, 1, 1, 16], [0.1, 0.1, 0.1, 30], weight)
        >>> round(found.noise / found.plain_noise, 2)
        0.3
    """
    rows = as_parameter(weight, "weight")
    operand = {"low": low, "high": high, "variance": variance}
    below, above, spread = (as_parameter(part, name, non_negative=name == "variance") for name, part in operand.items())
    if rows.ndim != 2 or below.ndim != 1 or not below.shape == above.shape == spread.shape == rows.shape[:1]:
        raise ValueError(
            f"weight: expected a weight of {below.size} x C and as many low, high and variance, found a weight of "
            f"shape {list(rows.shape)}, {above.size} high and {spread.size} variance"
        )
    steps, weight_steps = (2.0 ** as_bit_count(count) - 1 for count in (bits, weight_bits))
    side = _Sides(np.maximum(-below, 0.0), np.maximum(above, 0.0), spread, rows, steps, weight_steps)
    reach = np.maximum(side.below, side.above)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    suspects = np.argsort(-reach * largest, kind="stable")[: min(_MOST_LEFT_OUT, len(rows) // 16)]
    kept = np.ones(len(rows), bool)
    plain = side.noise(np.ones(len(rows)))
    best = side.along(reach, kept)
    for channel in suspects:
        fewer = kept.copy()
        fewer[channel] = False
        found = side.along(reach, fewer)
        if not found[0] < _WORTH * best[0]:
            break
        kept, best = fewer, found
    noise, exponent, factors = best
    return Balance(factors=factors, exponent=exponent, noise=noise, plain_noise=plain)


@dataclass(frozen=True, slots=True)
class _Sides:
    below: NDArray[np.float64]
    above: NDArray[np.float64]
    variance: NDArray[np.float64]
    weight: NDArray[np.float64]
    steps: float
    weight_steps: float

    def noise(self, factors: NDArray[np.float64]) -> float:
        """N of Eq. 1; channels with factor 0 are left out."""
        kept = factors > 0
        s = factors[kept]
        weight = self.weight[kept]
        step = (np.max(self.above[kept] / s, initial=0.0) + np.max(self.below[kept] / s, initial=0.0)) / self.steps
        columns = 2 * np.max(np.abs(weight) * s[:, None], axis=0, initial=0.0) / self.weight_steps
        of_x = step**2 * np.sum(s**2 * np.square(weight).sum(axis=1))
        of_weight = np.square(columns).sum() * np.sum(self.variance[kept] / s**2)
        return float(of_x + of_weight) / 12

    def along(self, reach: NDArray[np.float64], kept: NDArray[np.bool_]) -> tuple[float, float, NDArray[np.float64]]:
        """The least noise, its exponent and its factors, on the line s = reach^e of the channels kept."""
        widest = reach[kept].max(initial=0.0)
        if widest == 0:
            return self.noise(kept.astype(np.float64)), 0.0, kept.astype(np.float64)
        logs = np.log(np.maximum(reach, _LEAST * widest))
        logs -= logs[kept].mean()

        def factors(exponent: float) -> NDArray[np.float64]:
            return np.where(kept, np.exp(exponent * logs), 0.0)

        found = optimize.minimize_scalar(
            lambda e: np.log(max(self.noise(factors(e)), 1e-300)),
            bounds=(0.0, 1.0),
            method="bounded",
            options={"xatol": 0.01},
        )
        candidates = [(self.noise(factors(e)), float(e), factors(float(e))) for e in (0.0, float(found.x))]
        return min(candidates, key=lambda one: one[0])
