"""The loops of `qmath.kernels.grid` in plain NumPy, for small work: compiling takes longer than that.

They fill the same bits. The compiled loops multiply with the reciprocal and correct the product, which gives the
quotient that is divided out here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WORK = 1 << 22  # values in a process, from which on the compiled loops pay
_BLOCK = 1 << 16
_left = WORK


def pays_to_compile(values: int) -> bool:
    """Whether this process has had so much work, with these values, that compiled loops pay."""
    global _left
    _left -= values
    return _left < 0


def compile_grids() -> None:
    """Compile the loops of `qmath.kernels.grid` for float32, and codes of 8 bits."""
    from qmath.kernels import grid as compiled
    from qmath.kernels.rows import run_rows

    grid = np.ones((6, 2), np.float32)
    x = np.ones((2, 2), np.float32)
    for kind, values in (("values", np.float32), ("codes", np.int8), ("codes", np.uint8)):
        by_row, by_column = getattr(compiled, f"{kind}_by_row"), getattr(compiled, f"{kind}_by_column")
        for axis in (0, 1):
            run_rows(by_row, by_column, x, np.empty((2, 2), values), axis, grid, False, channels=2)


def values_by_row(
    start: int, stop: int, inner: int, x: NDArray[Any], out: NDArray[Any], grid: NDArray[Any], half_up: bool
) -> None:
    """Fill the flat values start..stop; value i belongs to channel (i // inner) mod channels."""
    for part, (scale, offset, low, high, _) in _parts(start, stop, inner, grid):
        out[part] = _level(x[part], scale, offset, low, high, half_up) * scale + offset


def codes_by_row(
    start: int, stop: int, inner: int, x: NDArray[Any], out: NDArray[Any], grid: NDArray[Any], half_up: bool
) -> None:
    """As `values_by_row`, for codes."""
    for part, (scale, offset, low, high, zero_point) in _parts(start, stop, inner, grid):
        out[part] = (_level(x[part], scale, offset, low, high, half_up) + zero_point).astype(np.int32)


def values_by_column(
    start: int, stop: int, x: NDArray[Any], out: NDArray[Any], grid: NDArray[Any], half_up: bool
) -> None:
    """Fill the rows start..stop, each with one value per column of `grid`; the last row may be short."""
    width = grid.shape[1]
    values_by_row(start * width, min(stop * width, x.size), 1, x, out, grid, half_up)


def codes_by_column(
    start: int, stop: int, x: NDArray[Any], out: NDArray[Any], grid: NDArray[Any], half_up: bool
) -> None:
    """As `values_by_column`, for codes."""
    width = grid.shape[1]
    codes_by_row(start * width, min(stop * width, x.size), 1, x, out, grid, half_up)


def _parts(start: int, stop: int, inner: int, grid: NDArray[Any]) -> Any:
    """Slices of start..stop, with the parameters of every value in them: one number each, if there is one channel."""
    used = grid[[0, 2, 3, 4, 5]]  # all but the reciprocal
    for first in range(start, stop, _BLOCK):
        last = min(first + _BLOCK, stop)
        alone = grid.shape[1] == 1
        yield slice(first, last), used[:, 0] if alone else used[:, np.arange(first, last) // inner % grid.shape[1]]


def _level(x: Any, scale: Any, offset: Any, low: Any, high: Any, half_up: bool) -> Any:
    """round((x - offset) / scale) of the clamped x; ties to even, or upwards."""
    quotient = np.minimum(np.maximum(x - offset, low), high) / scale
    level = np.rint(quotient)
    return level + (quotient - level >= 0.5).astype(x.dtype) if half_up else level
