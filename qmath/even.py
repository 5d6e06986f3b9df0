"""Rounding that keeps sums: by the second moments that an operand is likely to have, before any sample is seen.

The error e of a weight row makes the mean squared error e H e^T at its output, with H = E[x x^T]. What is known of x
without data: neighbouring pixels are alike, and channels behind a ReLU are above zero. With unit variance, correlation
rho between the taps t of an input channel c, and a squared mean mu relative to the variance,

    e H e^T = sum_c [(1 - rho) sum_t e_ct^2 + rho (sum_t e_ct)^2] + mu (sum_c sum_t e_ct)^2                          (1)

Rounding to nearest minimises the first term alone. Its errors add up in the others, most of all in depthwise
convolutions, whose few weights multiply pixels that are nearly equal. Starting from the nearest codes, single codes
move by whole steps, mostly to the second nearest, as long as (1) falls. A move takes the same short time in any row,
which two kinds of sums describe. Source: SQuant (Guo et al., 2022), which flips codes by rules, for kernels and then
for channels; here Eq. 1 decides on both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_axis, as_data, as_parameter, check_finite
from qmath.grid import Grid
from qmath.kernels.threads import over_threads

CORRELATION = 0.9  # of neighbouring pixels
MEAN = 0.09  # the squared mean of an operand over its variance: above zero for few, about zero for most
_SWEEPS = 10
_GRAIN = 64  # rows, at least, for a thread
_VALUES = 2**20  # of a block of rows


def round_evenly(
    weight: ArrayLike, grid: Grid, *, axis: int = 0, correlation: float = CORRELATION, mean: float = MEAN
) -> NDArray[Any]:
    """Return codes of a weight for which Eq. 1 of `qmath.even` is no larger than for the nearest ones.

    Outputs run along `axis` of the weight; what remains are inputs, and behind these the taps of a kernel. The `grid`
    is any that fits the weight. `correlation` is rho, in 0..1, and `mean` is mu. Codes have the shape of the weight.

    Raises:
        ValueError: For a weight of less than two dimensions, NaN and infinities, and numbers out of range.
        TypeError: For anything but real numbers.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> weight = np.full((1, 1, 3, 3), 0.4)
        >>> codes = qmath.round_evenly(weight, qmath.Grid(4, 1.0))
        >>> int(codes.sum()), int(qmath.quantize(weight, qmath.Grid(4, 1.0)).sum())  # the sum of the weights is 3.6
        (4, 0)
    """
    array = as_data(weight, "weight")
    check_finite(array, "weight")
    if array.ndim < 2:
        raise ValueError(f"weight: expected outputs and inputs, found shape {array.shape}")
    share, mu = (
        float(as_parameter(v, n, non_negative=True)) for v, n in ((correlation, "correlation"), (mean, "mean"))
    )
    if share > 1:
        raise ValueError(f"correlation: expected a number in 0..1, found {correlation}")
    moved = np.moveaxis(array, as_axis(axis, array.ndim), 0)
    taps = int(np.prod(moved.shape[2:]))
    low, high = grid.limits

    def rows(parameter: ArrayLike) -> NDArray[Any]:
        laid = grid.granularity.lay(parameter, array.shape) if np.size(parameter) > 1 else np.asarray(parameter)
        whole = np.broadcast_to(laid, array.shape) if laid.ndim == 0 or laid.shape != array.shape else laid
        return np.moveaxis(whole, axis, 0)

    parts = moved, rows(grid.scale), rows(grid.zero_point), rows(low), rows(high)
    codes = np.empty(moved.shape, grid.code_dtype)
    count = max(1, _VALUES // max(1, moved[0].size))
    for first in range(0, len(moved), count):
        some = slice(first, first + count)
        block = [np.ascontiguousarray(part[some], np.float64).reshape(len(moved[some]), -1) for part in parts]
        codes[some] = _settled(block, taps, share, mu).reshape(moved[some].shape)
    return np.ascontiguousarray(np.moveaxis(codes, 0, axis))


def _settled(block: list[NDArray[np.float64]], taps: int, share: float, mean: float) -> NDArray[np.float64]:
    """The codes of a block: its rows, and their steps, zero points and limits."""
    from qmath.kernels import even as kernels

    rows, step, zero, low, high = block
    bottom, top = low - zero, high - zero
    codes = np.clip(np.rint(rows / step), bottom, top)
    over_threads(
        kernels.settle,
        len(rows),
        _GRAIN,
        rows,
        step,
        bottom,
        top,
        codes,
        taps,
        share if taps > 1 else 0.0,
        mean,
        _SWEEPS,
    )
    return codes + zero
