"""A short staircase as sixteen cells of equal width with at most one edge each, so that one comparison is enough.

The cell of x is c = trunc(clamp(x inverse + shift, 0, 15)), in float32. It never falls as x grows, so an edge in cell c
splits it exactly: x >= edges[c] gets above[c], any other x below[c]. Where a vector register holds sixteen floats, a
lookup is one instruction for sixteen values.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qmath.kernels.compiled import compiled
from qmath.kernels.vectors import widest_vectors

CELLS = 16
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, CELLS), ir.VectorType(_INT, CELLS)


def in_one_register() -> bool:
    """Whether this processor has vectors of sixteen floats, without which `fill_by_row` is correct but not fast."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))


def cells_of(edges: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float32] | None:
    """Rows edges, below, above and (inverse, shift, ...) per channel, (channels, 4, 16); None if they do not fit.

    `edges` (channels, edges) are ascending thresholds in float32 and `values` (channels, edges + 1) the values between
    them. Zero itself maps to 0, whatever the edges next to it.
    """
    smallest = np.finfo(np.float32).smallest_subnormal
    split = (edges[:, 1:] == smallest) & (edges[:, :-1] == 0)  # zero is a step of its own, which needs no cell
    twice = np.flatnonzero(split.all(axis=0)) + 1
    edges, values = np.delete(edges, twice, axis=1), np.delete(values, twice, axis=1)
    if edges.shape[1] < 2 or not np.isfinite(edges).all():
        return None
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / np.diff(edges).min(axis=1, keepdims=True)
        shift = np.float32(0.5) - edges[:, :1] * inverse
        places = edges * inverse + shift
    usable = np.isfinite(places).all() and (inverse >= np.finfo(np.float32).tiny).all()
    if not usable or places.max() >= CELLS or (np.diff(np.trunc(places)) < 1).any():
        return None
    cells = np.zeros((len(edges), 4, CELLS), np.float32)
    cells[:, 0] = np.inf
    channel = np.arange(len(edges))[:, np.newaxis]
    at = places.astype(np.int64)
    cells[channel, 0, at] = edges
    passed = (at[:, :, np.newaxis] < np.arange(CELLS)).sum(axis=1)  # edges below a cell
    cells[:, 1] = cells[:, 2] = values[channel, passed]
    cells[channel, 2, at] = values[:, 1:]
    cells[:, 3, :1], cells[:, 3, 1:2] = inverse, shift
    return cells


@compiled()
def fill_by_row(start, stop, inner, x, out, cells):
    """Fill the flat values start..stop; value i belongs to channel (i // inner) mod channels."""
    short, filled = np.empty(CELLS, x.dtype), np.empty(CELLS, x.dtype)
    while start < stop:
        end = min(stop, (start // inner + 1) * inner)
        channel = cells[start // inner % cells.shape[0]]
        whole = (end - start) // CELLS * CELLS
        _fill(x[start : start + whole], out[start : start + whole], channel)
        rest = end - start - whole
        short[:rest] = x[start + whole : end]
        _fill(short, filled, channel)
        out[start + whole : end] = filled[:rest]
        start = end


@compiled()
def _fill(x, out, cells):
    widest_vectors()
    inverse, shift = cells[3, 0], cells[3, 1]
    edges, below, above = cells[0], cells[1], cells[2]
    for i in range(0, x.size, CELLS):
        _sixteen(x, out, i, edges, below, above, inverse, shift)


@intrinsic
def _sixteen(typing_context, x, out, i, edges, below, above, inverse, shift):
    """out[i : i + 16] from x[i : i + 16]; all arrays are contiguous float32. Zero becomes 0, NaN stays NaN."""

    def lower(context, builder, signature, arguments):
        def pointer(k, *offset):
            data = context.make_array(signature.args[k])(context, builder, arguments[k]).data
            return builder.bitcast(builder.gep(data, offset) if offset else data, _FLOATS.as_pointer())

        def load(k, *offset):
            loaded = builder.load(pointer(k, *offset))
            loaded.align = 4
            return loaded

        def everywhere(scalar):
            first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), scalar, _INT(0))
            return builder.shuffle_vector(first, first, ir.Constant(_INTS, [0] * CELLS))

        def looked_up(table, places):  # LLVM turns this into one permutation
            found = ir.Constant(_FLOATS, ir.Undefined)
            for k in range(CELLS):
                entry = builder.extract_element(table, builder.extract_element(places, _INT(k)))
                found = builder.insert_element(found, entry, _INT(k))
            return found

        zero, last = ir.Constant(_FLOATS, [0.0] * CELLS), ir.Constant(_FLOATS, [CELLS - 1.0] * CELLS)
        values = load(0, arguments[2])
        places = builder.fadd(builder.fmul(values, everywhere(arguments[6])), everywhere(arguments[7]))
        places = builder.select(builder.fcmp_ordered(">", places, zero), places, zero)  # NaN becomes 0
        places = builder.select(builder.fcmp_ordered("<", places, last), places, last)
        places = builder.fptosi(places, _INTS)
        reached = builder.fcmp_ordered(">=", values, looked_up(load(3), places))
        result = builder.select(reached, looked_up(load(5), places), looked_up(load(4), places))
        result = builder.select(builder.fcmp_ordered("!=", values, zero), result, builder.fadd(values, zero))
        builder.store(result, pointer(1, arguments[2])).align = 4
        return context.get_dummy_value()

    return types.none(x, out, i, edges, below, above, inverse, shift), lower
