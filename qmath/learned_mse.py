"""LSQ+'s initial scale and offset: the pair with the least squared error on the data (Eq. 8).

The paper uses gradient descent; here the error is evaluated over ranges, and the best are refined by alternating two
exact steps, neither of which can raise it: the codes for a given scale and offset (rounding), and the scale and offset
for given codes (a linear regression).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_data, check_finite
from qmath.histogram import Histogram
from qmath.learned import LsqConfiguration, lsq_configuration, minmax_parameters
from qmath.sample import is_histogram, sample_of

_POINTS = 4096  # more values than this are summarised in a histogram of as many bins
_SHARES = 20  # of the data's range below and above zero: every combination is a start
_KEPT = 8  # best starts, which are refined
_ROUNDS = 100

Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


def mse_parameters(
    data: ArrayLike | Histogram, *, bits: int, configuration: int = 4, low: float | None = None
) -> tuple[float, float]:
    """Return the (scale, offset) that minimise the mean of (x_hat - x)^2 over an array or a `Histogram` (LSQ+, Eq. 8).

    Both are in the units of x; the offset is 0 in configurations 1 and 2. In 3 and 4 the lowest level may be fixed at
    `low` (units of x; Table 6 takes the minimum of the data), and only the scale is searched. More than 4096 values are
    first counted in a histogram, whose bins are represented by their centres. The result is the best of 8 local minima,
    searched from 400 ranges within that of the data: close to the least error, but not proven to be it.

    Raises:
        ValueError: For NaN, infinite or missing values, for data that are all zero (or all `low`), and for `low` in
            configurations without an offset.

    Example:
        >>> import qmath
        >>> scale, offset = qmath.mse_parameters([0.5, 1.0, 1.5, 2.0], bits=2)
        >>> round(scale, 4), round(offset, 4)
        (0.5, 0.5)
    """
    chosen = lsq_configuration(configuration)
    points, weights = _points(data)
    if low is None:
        return _least_squares(points, weights, bits, configuration)
    if not chosen.offset:
        raise ValueError(f"low: configuration {configuration} has no offset that could hold a level there")
    scale, _ = _least_squares(points - low, weights, bits, 1)  # codes that count up from the lowest level
    return scale, low - chosen.code_range(bits)[0] * scale


def _least_squares(
    points: NDArray[np.float64], weights: NDArray[np.float64], bits: int, configuration: int
) -> tuple[float, float]:
    chosen = lsq_configuration(configuration)
    n, p = chosen.code_range(bits)
    if not points.any():
        raise ValueError("data: expected a non-zero value, found none")
    scale, offset = minmax_parameters(*_starts(points, chosen.offset), bits=bits, configuration=configuration)
    order = np.argsort(_errors(points, weights, scale, offset, n, p), kind="stable")[:_KEPT]
    scale, offset = scale[order], offset[order]
    for _ in range(_ROUNDS):
        refined = _regress(points, weights, scale, offset, n, p, chosen)
        if np.array_equal(refined[0], scale) and np.array_equal(refined[1], offset):
            break
        scale, offset = refined
    best = int(np.argmin(_errors(points, weights, scale, offset, n, p)))
    return float(scale[best]), float(offset[best])


def _points(data: ArrayLike | Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and their weights, which add up to 1."""
    if not is_histogram(data):
        array = as_data(data)  # type: ignore[arg-type]
        check_finite(array, "data")
        data = Histogram.of(array, bins=_POINTS) if array.size > _POINTS else array
    sample = sample_of(data)
    return sample.points, sample.weights / sample.weights.sum()


def _starts(points: NDArray[np.float64], both_ends: bool) -> Pairs:
    """Lower and upper ends at shares of the data's range on both sides of zero (or of its end nearest to zero)."""
    low, high = float(points.min()), float(points.max())
    pivot = min(max(low, 0.0), high)
    shares = np.linspace(0.05, 1.0, _SHARES if both_ends else _SHARES**2)
    below, above = pivot + (low - pivot) * shares, pivot + (high - pivot) * shares
    if not both_ends:
        return below, above
    below, above = np.meshgrid(below, above, indexing="ij")
    return below.ravel(), above.ravel()


def _codes(
    points: NDArray[np.float64], scale: NDArray[np.float64], offset: NDArray[np.float64], n: int, p: int
) -> NDArray[np.float64]:
    return np.rint(np.clip((points - offset[:, None]) / scale[:, None], n, p))


def _errors(
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    n: int,
    p: int,
) -> NDArray[np.float64]:
    """Mean squared error of every pair."""
    values = _codes(points, scale, offset, n, p) * scale[:, None] + offset[:, None]
    return ((values - points) ** 2) @ weights


def _regress(
    points: NDArray[np.float64],
    weights: NDArray[np.float64],
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    n: int,
    p: int,
    chosen: LsqConfiguration,
) -> Pairs:
    """The best pairs for the codes of the given pairs; a pair is kept where the regression has no solution."""
    codes = _codes(points, scale, offset, n, p)
    mean_code, mean_point = (codes @ weights, float(points @ weights)) if chosen.offset else (0.0 * scale, 0.0)
    centred = codes - mean_code[:, None]
    spread = centred**2 @ weights
    slope = (centred * (points - mean_point)) @ weights / np.where(spread > 0, spread, 1.0)
    kept = (spread <= 0) | (slope <= 0)
    scale = np.where(kept, scale, slope)
    return scale, np.where(kept, offset, mean_point - mean_code * scale)
