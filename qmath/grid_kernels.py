"""Compiled loops of `qmath.grid`: real numbers to codes, and to the values that codes stand for.

`grid` is a (6, channels) array in the type of the data, in which all arithmetic is done: scale, 1 / scale, offset, the
ends of the grid less the offset, and the zero point. A value is first clamped to the ends, so that its rounded quotient
is a code and cannot overflow; NaN stays NaN.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit

from qmath._fma import fma


@njit(cache=True, nogil=True)
def _level(x, scale, inverse, offset, low, high, ties):
    """round((clamp(x) - offset) / scale), one more where that lies ties[0] or more below the quotient.

    The quotient is the product with the reciprocal, corrected by its exact remainder (Markstein 1990): it agrees with
    the division to the last bit, at the speed of memory.
    """
    v = x - offset
    v = low if v < low else v
    v = high if v > high else v
    q = v * inverse
    q = fma(fma(-q, scale, v), inverse, q)
    r = np.rint(q)
    tie, one = ties
    return r + one if q - r >= tie else r


@njit(cache=True, nogil=True)
def _values(x, out, scale, inverse, offset, low, high, ties):
    for i in range(x.size):
        out[i] = _level(x[i], scale, inverse, offset, low, high, ties) * scale + offset


@njit(cache=True, nogil=True)
def _codes(x, out, scale, inverse, offset, low, high, zero_point, ties):
    for i in range(x.size):
        out[i] = np.int32(_level(x[i], scale, inverse, offset, low, high, ties) + zero_point)


@njit(cache=True, nogil=True)
def values_by_row(start, stop, inner, x, out, grid, tie):
    """The values start..stop, where row i // inner belongs to channel (i // inner) mod channels."""
    ties = x.dtype.type(tie), x.dtype.type(1)
    scale, inverse, offset, low, high, _ = grid
    while start < stop:
        c = start // inner % grid.shape[1]
        end = min(stop, (start // inner + 1) * inner)
        _values(x[start:end], out[start:end], scale[c], inverse[c], offset[c], low[c], high[c], ties)
        start = end


@njit(cache=True, nogil=True)
def codes_by_row(start, stop, inner, x, out, grid, tie):
    """As `values_by_row`, for codes."""
    ties = x.dtype.type(tie), x.dtype.type(1)
    scale, inverse, offset, low, high, zero_point = grid
    while start < stop:
        c = start // inner % grid.shape[1]
        end = min(stop, (start // inner + 1) * inner)
        _codes(x[start:end], out[start:end], scale[c], inverse[c], offset[c], low[c], high[c], zero_point[c], ties)
        start = end


@njit(cache=True, nogil=True)
def values_by_column(start, stop, x, out, grid, tie):
    """The rows start..stop of one value per channel."""
    ties = x.dtype.type(tie), x.dtype.type(1)
    scale, inverse, offset, low, high, _ = grid
    channels = scale.size
    for row in range(start, stop):
        source, target = x[row * channels : (row + 1) * channels], out[row * channels : (row + 1) * channels]
        for c in range(channels):
            level = _level(source[c], scale[c], inverse[c], offset[c], low[c], high[c], ties)
            target[c] = level * scale[c] + offset[c]


@njit(cache=True, nogil=True)
def codes_by_column(start, stop, x, out, grid, tie):
    """As `values_by_column`, for codes."""
    ties = x.dtype.type(tie), x.dtype.type(1)
    scale, inverse, offset, low, high, zero_point = grid
    channels = scale.size
    for row in range(start, stop):
        source, target = x[row * channels : (row + 1) * channels], out[row * channels : (row + 1) * channels]
        for c in range(channels):
            level = _level(source[c], scale[c], inverse[c], offset[c], low[c], high[c], ties)
            target[c] = np.int32(level + zero_point[c])
