"""Compiled loops of `qmath.staircase`: the code of the step that each value falls on, times a unit.

`edges` is a (channels, edges) array in the units and type of the data, padded with inf to whole groups of eight;
`codes` has one entry more, `unit` one per channel; `jumps` are the first code and the differences of the codes.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

import numpy as np

from qmath.kernels.compiled import compiled
from qmath.kernels.vectors import widest_vectors

_BLOCK = 1 << 10  # values whose codes stay in the first-level cache between passes


@compiled()
def compare_by_row(start, stop, inner, x, out, edges, jumps, unit):
    """Compare every value with every edge, eight edges per pass: fast for few edges, since it vectorises."""
    partial = np.empty(_BLOCK, x.dtype)
    lowest, jumps = jumps[0], jumps[1:]
    last = jumps.size - 8
    while start < stop:
        c = start // inner % unit.size
        end = min(stop, (start // inner + 1) * inner)
        for first in range(start, end, _BLOCK):
            block = x[first : min(end, first + _BLOCK)]
            for i in range(block.size):
                partial[i] = lowest
            for group in range(0, last, 8):
                _climb(block, partial, edges[c, group : group + 8], jumps[group : group + 8])
            _arrive(block, partial, out[first : first + block.size], edges[c, last:], jumps[last:], unit[c])
        start = end


@compiled()
def _climb(x, partial, edges, jumps):
    """Add to `partial` the jumps at those of eight edges that x has reached."""
    widest_vectors()
    e0, e1, e2, e3, e4, e5, e6, e7 = edges[0], edges[1], edges[2], edges[3], edges[4], edges[5], edges[6], edges[7]
    j0, j1, j2, j3, j4, j5, j6, j7 = jumps[0], jumps[1], jumps[2], jumps[3], jumps[4], jumps[5], jumps[6], jumps[7]
    zero = x.dtype.type(0)
    for i in range(x.size):
        v, a, b = x[i], partial[i], zero
        a = a + j0 if v >= e0 else a
        b = b + j1 if v >= e1 else b
        a = a + j2 if v >= e2 else a
        b = b + j3 if v >= e3 else b
        a = a + j4 if v >= e4 else a
        b = b + j5 if v >= e5 else b
        a = a + j6 if v >= e6 else a
        b = b + j7 if v >= e7 else b
        partial[i] = a + b


@compiled()
def _arrive(x, partial, out, edges, jumps, unit):
    """As `_climb`, then multiply by the unit into `out`; NaN stays NaN."""
    widest_vectors()
    e0, e1, e2, e3, e4, e5, e6, e7 = edges[0], edges[1], edges[2], edges[3], edges[4], edges[5], edges[6], edges[7]
    j0, j1, j2, j3, j4, j5, j6, j7 = jumps[0], jumps[1], jumps[2], jumps[3], jumps[4], jumps[5], jumps[6], jumps[7]
    zero = x.dtype.type(0)
    for i in range(x.size):
        v, a, b = x[i], partial[i], zero
        a = a + j0 if v >= e0 else a
        b = b + j1 if v >= e1 else b
        a = a + j2 if v >= e2 else a
        b = b + j3 if v >= e3 else b
        a = a + j4 if v >= e4 else a
        b = b + j5 if v >= e5 else b
        a = a + j6 if v >= e6 else a
        b = b + j7 if v >= e7 else b
        reached = (a + b) * unit
        out[i] = reached if v == v else v


@compiled()
def search_by_row(start, stop, inner, x, out, edges, codes, unit):
    """Find the step of every value by bisection."""
    while start < stop:
        c = start // inner % unit.size
        end = min(stop, (start // inner + 1) * inner)
        ascending = edges[c]
        for i in range(start, end):
            first, count = 0, ascending.size
            while count > 0:
                half = count // 2
                if x[i] >= ascending[first + half]:
                    first += half + 1
                    count -= half + 1
                else:
                    count = half
            out[i] = codes[first] * unit[c] if x[i] == x[i] else x[i]
        start = end
