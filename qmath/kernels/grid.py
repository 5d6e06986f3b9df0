"""Compiled loops of `qmath.grid`: from real numbers to codes, and to the values of those codes.

`grid` is a (6, channels) array in the type of the data, in which all arithmetic is done: scale, 1 / scale, offset, the
two ends of the grid minus the offset, and the zero point. A value is first clamped to the ends, so that its rounded
quotient is a code and cannot overflow; NaN stays NaN.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

import numpy as np

from qmath.kernels.compiled import compiled
from qmath.kernels.fma import fma
from qmath.kernels.vectors import widest_vectors


@compiled()
def _level(x, scale, inverse, offset, low, high, half_up):
    """round((x - offset) / scale) of the clamped x; ties to even, or upwards.

    The quotient is the product with the reciprocal, corrected once by its remainder, which a fused multiply-add gives
    exactly. Before its last rounding it is off by about 2^-47 of itself (float32), so it can differ from the division
    only in rare cases: none is known, and tests look for them next to the ties, but that none exists is not proven.
    """
    v = x - offset
    v = low if v < low else v
    v = high if v > high else v
    q = v * inverse
    q = fma(fma(-q, scale, v), inverse, q)
    r = np.rint(q)
    if half_up:
        half, one = type(x)(0.5), type(x)(1)
        r = r + one if q - r >= half else r
    return r


@compiled()
def _values(x, out, scale, inverse, offset, low, high, half_up):
    widest_vectors()
    for i in range(x.size):
        out[i] = _level(x[i], scale, inverse, offset, low, high, half_up) * scale + offset


@compiled()
def _codes(x, out, scale, inverse, offset, low, high, zero_point, half_up):
    widest_vectors()
    for i in range(x.size):
        out[i] = np.int32(_level(x[i], scale, inverse, offset, low, high, half_up) + zero_point)


@compiled()
def values_by_row(start, stop, inner, x, out, grid, half_up):
    """Fill the flat values start..stop; value i belongs to channel (i // inner) mod channels."""
    scale, inverse, offset, low, high, _ = grid
    while start < stop:
        c = start // inner % grid.shape[1]
        end = min(stop, (start // inner + 1) * inner)
        _values(x[start:end], out[start:end], scale[c], inverse[c], offset[c], low[c], high[c], half_up)
        start = end


@compiled()
def codes_by_row(start, stop, inner, x, out, grid, half_up):
    """As `values_by_row`, for codes."""
    scale, inverse, offset, low, high, zero_point = grid
    while start < stop:
        c = start // inner % grid.shape[1]
        end = min(stop, (start // inner + 1) * inner)
        _codes(x[start:end], out[start:end], scale[c], inverse[c], offset[c], low[c], high[c], zero_point[c], half_up)
        start = end


@compiled()
def values_by_column(start, stop, x, out, grid, half_up):
    """Fill the rows start..stop, each with one value per column of `grid`; the last row may be short."""
    width = grid.shape[1]
    for row in range(start, stop):
        _values_across(x[row * width : (row + 1) * width], out[row * width : (row + 1) * width], grid, half_up)


@compiled()
def codes_by_column(start, stop, x, out, grid, half_up):
    """As `values_by_column`, for codes."""
    width = grid.shape[1]
    for row in range(start, stop):
        _codes_across(x[row * width : (row + 1) * width], out[row * width : (row + 1) * width], grid, half_up)


@compiled()
def _values_across(x, out, grid, half_up):
    widest_vectors()
    for c in range(x.size):
        level = _level(x[c], grid[0, c], grid[1, c], grid[2, c], grid[3, c], grid[4, c], half_up)
        out[c] = level * grid[0, c] + grid[2, c]


@compiled()
def _codes_across(x, out, grid, half_up):
    widest_vectors()
    for c in range(x.size):
        level = _level(x[c], grid[0, c], grid[1, c], grid[2, c], grid[3, c], grid[4, c], half_up)
        out[c] = np.int32(level + grid[5, c])
