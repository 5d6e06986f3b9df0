"""Compiled loops of `qmath.grid`: real numbers to codes, and to the values that codes stand for.

Every parameter is a 1-D array with one entry per channel, of the type of the data, in which all arithmetic is done:
v = (x - offset) / scale, r = rint(v), one more where v - r >= tie, clamped to low..high. Each kernel returns whether
it met a NaN.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _level(x, scale, offset, low, high, tie):
    v = (x - offset) / scale
    r = np.rint(v)
    r += v - r >= tie
    r = low if r < low else r
    return high if r > high else r


@njit(cache=True, nogil=True)
def values_by_row(start, stop, inner, x, out, scale, offset, low, high, tie):
    """out = r scale + offset for the values start..stop, row i // inner using channel (i // inner) mod channels."""
    found_nan = False
    one = x.dtype.type(tie)
    while start < stop:
        c = start // inner % scale.size
        end = min(stop, (start // inner + 1) * inner)
        s, o, lo, hi = scale[c], offset[c], low[c], high[c]
        for i in range(start, end):
            out[i] = _level(x[i], s, o, lo, hi, one) * s + o
            found_nan |= x[i] != x[i]
        start = end
    return found_nan


@njit(cache=True, nogil=True)
def codes_by_row(start, stop, inner, x, out, scale, offset, low, high, zero_point, tie):
    """out = r + zero_point, as `values_by_row`."""
    found_nan = False
    one = x.dtype.type(tie)
    while start < stop:
        c = start // inner % scale.size
        end = min(stop, (start // inner + 1) * inner)
        s, o, lo, hi, zero = scale[c], offset[c], low[c], high[c], zero_point[c]
        for i in range(start, end):
            out[i] = np.int32(_level(x[i], s, o, lo, hi, one) + zero)
            found_nan |= x[i] != x[i]
        start = end
    return found_nan


@njit(cache=True, nogil=True)
def values_by_column(start, stop, x, out, scale, offset, low, high, tie):
    """out = r scale + offset for the rows start..stop of one value per channel."""
    found_nan = False
    channels = scale.size
    one = x.dtype.type(tie)
    for row in range(start, stop):
        source, target = x[row * channels : (row + 1) * channels], out[row * channels : (row + 1) * channels]
        for c in range(channels):
            target[c] = _level(source[c], scale[c], offset[c], low[c], high[c], one) * scale[c] + offset[c]
            found_nan |= source[c] != source[c]
    return found_nan


@njit(cache=True, nogil=True)
def codes_by_column(start, stop, x, out, scale, offset, low, high, zero_point, tie):
    """out = r + zero_point, as `values_by_column`."""
    found_nan = False
    channels = scale.size
    one = x.dtype.type(tie)
    for row in range(start, stop):
        source, target = x[row * channels : (row + 1) * channels], out[row * channels : (row + 1) * channels]
        for c in range(channels):
            level = _level(source[c], scale[c], offset[c], low[c], high[c], one)
            target[c] = np.int32(level + zero_point[c])
            found_nan |= source[c] != source[c]
    return found_nan
