"""Compiled search of `qmath.group_grids`: the multiple and the zero point of every group with the least squared error.

All loops run along columns, each with sums of its own in a fixed order, so that results depend on no width of vectors.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from qmath.kernels.compiled import compiled

FRACTIONS = 20  # steps tried, around and below that of the whole range
_MOST, _LEAST = 1.1, 0.5  # of that step: zero on a level may need more than the range


@compiled()
def search(x, weight, unit, levels, symmetric, most, multiples, multiple, zero, error):
    """Fill multiple, zero and error (columns) for a group of x (size x columns, C-contiguous)."""
    columns = x.shape[1]
    low, high = np.zeros(columns, x.dtype), np.zeros(columns, x.dtype)
    for k in range(x.shape[0]):
        for n in range(columns):
            low[n] = min(low[n], x[k, n])
            high[n] = max(high[n], x[k, n])
    m, z = np.empty(columns, np.int32), np.empty(columns, np.int32)
    step, inverse = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
    bottom, top, total = np.empty(columns, x.dtype), np.empty(columns, x.dtype), np.empty(columns, x.dtype)
    for n in range(columns):
        error[n] = np.inf
    reach = 0 if symmetric else 1  # zero points around that which clips both ends alike
    for j in range(FRACTIONS):
        fraction = _MOST - j * (_MOST - _LEAST) / FRACTIONS
        for aside in range(-reach, reach + 1):
            for n in range(columns):
                m[n], z[n] = _candidate(low[n], high[n], unit[n], levels, symmetric, most, multiples, fraction, aside)
                step[n] = m[n] * unit[n]
                inverse[n] = 1 / step[n]
                bottom[n], top[n], total[n] = -z[n], levels - z[n], 0
            _add_errors(x, weight, step, inverse, bottom, top, total)
            for n in range(columns):
                if total[n] < error[n]:
                    error[n], multiple[n], zero[n] = total[n], m[n], z[n]


@compiled()
def _candidate(low, high, unit, levels, symmetric, most, multiples, fraction, aside):
    """A multiple and a zero point for a fraction of the range, with no code times multiple beyond `most`."""
    span = 2 * max(high, -low) if symmetric else high - low
    m = min(max(np.rint(fraction * span / (levels * unit)), 1), multiples)
    middle = np.rint((levels - (low + high) / (m * unit)) / 2) + aside
    z = levels // 2 if symmetric else min(max(middle, 0), levels)
    return np.int32(max(min(m, most // max(z, levels - z)), 1)), np.int32(z)


@compiled()
def _add_errors(x, weight, step, inverse, bottom, top, total):
    """Add to every column's total its squared error on the grid, row k times weight[k]."""
    for k in range(x.shape[0]):
        for n in range(x.shape[1]):
            code = np.rint(x[k, n] * inverse[n])
            code = bottom[n] if code < bottom[n] else code
            code = top[n] if code > top[n] else code
            off = x[k, n] - code * step[n]
            total[n] += weight[k] * off * off


@compiled()
def moments(start, stop, x, weight, multiple, zero, unit, levels, products, squares):
    """For the columns start..stop, the weighted sums of x m c and of (m c)^2 over codes c about zero."""
    for g in range(x.shape[0]):
        for k in range(x.shape[1]):
            for n in range(start, stop):
                code = np.rint(x[g, k, n] / (multiple[g, n] * unit[n]))
                code = min(max(code, -zero[g, n]), levels - zero[g, n]) * multiple[g, n]
                products[n] += weight[g, k] * x[g, k, n] * code
                squares[n] += weight[g, k] * code * code
