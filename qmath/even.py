"""Rounding that keeps sums: by the second moments that an operand is likely to have, before any sample is seen.

The error e of a weight row makes the mean squared error e H e^T at its output, with H = E[x x^T]. What is likely of x
without data: neighbouring pixels are alike, and channels have means, as biases and activation functions give them. With
variance v_c and mean m_c of an input channel c, and correlation rho between its taps t,

    e H e^T = sum_c v_c [(1 - rho) sum_t e_ct^2 + rho (sum_t e_ct)^2] + (sum_c m_c sum_t e_ct)^2                     (1)

Rounding to nearest minimises the first term alone, for equal v. Its errors add up in the others, most of all in
depthwise convolutions, whose few weights multiply pixels that are nearly equal, and where channels are far from zero.
Starting from the nearest codes, single codes move by whole steps, mostly to the second nearest, as long as (1) falls. A
move takes the same short time in any row, which two kinds of sums describe. Source: SQuant (Guo et al., 2022), which
flips codes by rules, for kernels and then for channels; here Eq. 1 decides on both, and channels have means of their
own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_axis, as_data, as_parameter, check_finite
from qmath.grid import Grid
from qmath.kernels.threads import over_threads

CORRELATION = 0.9  # of neighbouring pixels
MEAN = 0.3  # of an operand in units of its spread: above zero for few, about zero for most
_SWEEPS = 10
_GRAIN = 64  # rows, at least, for a thread
_VALUES = 2**20  # of a block of rows


def round_evenly(
    weight: ArrayLike,
    grid: Grid,
    *,
    axis: int = 0,
    correlation: float = CORRELATION,
    mean: ArrayLike = MEAN,
    spread: ArrayLike = 1.0,
) -> NDArray[Any]:
    """Return codes of a weight for which Eq. 1 of `qmath.even` is no larger than for the nearest ones.

    Outputs run along `axis` of the weight; what remains are inputs, and behind these the taps of a kernel. The `grid`
    is any that fits the weight. `correlation` is rho, in 0..1; `mean` and `spread` are m and the root of v in the units
    of x: one number for all inputs, one for each, or an array of outputs x inputs. Codes have the shape of the weight.

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
    share = float(as_parameter(correlation, "correlation", non_negative=True))
    if share > 1:
        raise ValueError(f"correlation: expected a number in 0..1, found {correlation}")
    place = as_axis(axis, array.ndim)
    moved = np.moveaxis(array, place, 0)
    low, high = grid.limits
    parts = (
        moved,
        *(
            np.moveaxis(np.broadcast_to(grid.granularity.lay(part, array.shape), array.shape), place, 0)
            for part in (grid.scale, grid.zero_point, low, high)
        ),
    )
    of_inputs = [_of_inputs(v, n, moved.shape[:2]) for v, n in ((mean, "mean"), (spread, "spread"))]
    codes = np.empty(moved.shape, grid.code_dtype)
    count = max(1, _VALUES // max(1, moved[0].size))
    for first in range(0, len(moved), count):
        some = slice(first, first + count)
        block = [np.ascontiguousarray(part[some], np.float64).reshape(len(moved[some]), -1) for part in parts]
        codes[some] = _settled(block, [part[some] for part in of_inputs], share).reshape(moved[some].shape)
    return np.ascontiguousarray(np.moveaxis(codes, 0, place))


def _of_inputs(numbers: ArrayLike, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The numbers as outputs x inputs."""
    given = as_parameter(numbers, name, non_negative=name == "spread")
    try:
        return np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(f"{name}: expected numbers for {shape[1]} inputs, found shape {given.shape}") from None


def _settled(
    block: list[NDArray[np.float64]], of_inputs: list[NDArray[np.float64]], share: float
) -> NDArray[np.float64]:
    """The codes of a block: its rows, and their steps, zero points and limits; means and spreads of the inputs."""
    from qmath.kernels import even as kernels

    rows, step, zero, low, high = block
    mean, spread = (np.ascontiguousarray(part) for part in of_inputs)
    bottom, top = low - zero, high - zero
    codes = np.clip(np.rint(rows / step), bottom, top)
    taps = rows.shape[1] // max(1, mean.shape[1])
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
        np.square(spread),
        _SWEEPS,
    )
    return codes + zero
