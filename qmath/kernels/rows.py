"""How kernels traverse an array with one set of parameters per slice along an axis, on several threads.

A C-contiguous array of shape (..., channels, ...) is a list of rows of `inner` values each; row r belongs to channel r
mod channels. When the axis is the last one (inner = 1), a row is a single value, and a kernel that runs along the
parameters is used instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmath._validation import as_axis
from qmath.kernels.threads import over_threads

_GRAIN = 1 << 17  # values per thread below which another thread costs more than it saves
_WIDTH = 1 << 8  # length of a row that is worth a loop


def slices_shape(shape: tuple[int, ...], axis: int | None, channels: int) -> tuple[int, int, int]:
    """(outer, channels, inner) for parameters along `axis`; ValueError when it is missing or not `channels` long."""
    if axis is None:
        return 1, 1, math.prod(shape)
    axis = as_axis(axis, len(shape))
    if shape[axis] != channels:
        raise ValueError(f"x: expected {channels} slices along axis {axis}, one per parameter, found shape {shape}")
    return math.prod(shape[:axis]), channels, math.prod(shape[axis + 1 :])


def run_rows(
    by_row: Callable[..., None],
    by_column: Callable[..., None] | None,
    x: NDArray[Any],
    out: NDArray[Any],
    axis: int | None,
    parameters: NDArray[Any],
    *options: Any,
    channels: int,
) -> None:
    """Fill `out` from `x` with `parameters` for each of `channels` slices along `axis`, on several threads.

    `by_row(start, stop, inner, x, out, parameters, *options)` fills the flat values start..stop. When the last axis
    holds the channels and there is such a kernel, `by_column(start, stop, x, out, parameters, *options)` is used
    instead: it fills the rows start..stop, of one value per column of `parameters`, which are repeated until a row is
    worth a loop.
    """
    inner = slices_shape(x.shape, axis, channels)[2]
    source, target = x.ravel().view(), out.ravel()
    source.flags.writeable = False  # one type for Numba, whether or not the caller may write to x
    if by_column is not None and inner == 1 and channels > 1:
        repeated = np.tile(parameters, max(1, min(_WIDTH, x.size) // channels))
        width = repeated.shape[-1]
        rows, grain = -(-x.size // width), max(1, _GRAIN // width)
        over_threads(by_column, rows, grain, source, target, repeated, *options)
    else:
        over_threads(by_row, x.size, _GRAIN, inner, source, target, parameters, *options)


def output_like(data: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """`out` if it fits `data`, a new array if it is None, else ValueError."""
    if out is None:
        return np.empty(data.shape, data.dtype)
    fits = isinstance(out, np.ndarray) and out.shape == data.shape and out.dtype == data.dtype
    if not (fits and out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out: expected a writeable C-contiguous {data.dtype} array of shape {data.shape}")
    return out
