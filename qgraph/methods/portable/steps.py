"""Steps of grids with few significant bits, so that rescaling between grids is exact or far from every threshold.

A layer with operand step s_x, weight step s_w and result step s_y rescales its sums by m = s_x s_w / s_y. With

    s_x = P_x 2^i,    s_y = P_y 2^j,    s_w = r P_y 2^k,    bits(P_x) + bits(P_y) + bits(r) <= 24

the products s_x s_w and m = P_x r 2^(i+k-j) are exact in float32, in whatever order they are computed. The tensors that
meet in an Add or a Concat get odd multiples of one unit, which keeps every sum away from thresholds
(`qmath.odd_steps`). What that costs is part of the step: 2^-7 of it at most for operands, 1/16 for weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, nearest, upper_bound
from qgraph.onnxfile.edit import constant
from qgraph.plan.plan import ActivationQuant, QuantPlan

MEETING = frozenset({"Add", "Concat"})
_FLOAT_BITS = 24
_BITS, _BOUNDED_BITS = 8, 10  # of the steps of most tensors; of those whose range a Clip fixes
_UNIT_BITS = 9  # of the largest step of those that meet
_FEWEST_UNITS = 16  # of the smallest: an odd multiple may be larger by 1 in 8
_FEWEST_BITS = 4  # of a weight's step


def exact_activations(plan: QuantPlan, view: GraphView) -> tuple[QuantPlan, tuple[str, ...]]:
    """The plan with short steps of activations, and the names of the operators whose sums may not be exact."""
    grids = {a.tensor: a for a in plan.activations if a.role == "tensor"}
    meetings = list(_meetings(view, grids))
    steps: dict[str, float] = {}
    for tensors in _joined(meetings):
        found = _on_one_unit([grids[tensor] for tensor in tensors], view)
        steps |= dict(zip(tensors, found or (), strict=bool(found)))

    def exact(grid: ActivationQuant) -> ActivationQuant:
        if not _is_plain(grid):
            return grid
        if grid.role == "tensor" and grid.tensor in steps:
            return dataclasses.replace(grid, scale=steps[grid.tensor])
        if _is_bounded(grid, view):
            return dataclasses.replace(grid, scale=float(_shorter(grid.scale, _BOUNDED_BITS)))
        return dataclasses.replace(grid, scale=float(qmath.short_steps(grid.scale, _BITS)))

    changed = plan.map_activations(exact)
    now = {a.tensor: a for a in changed.activations if a.role == "tensor"}
    return changed, tuple(str(node.name) for node, names in meetings if not _holds([now[name] for name in names]))


def exact_weight_steps(
    steps: NDArray[np.floating], operand: ActivationQuant | None, result: ActivationQuant | None, *, up: bool
) -> NDArray[np.float64]:
    """Steps of a weight at which the multipliers of its layer are exact: the next larger ones, or the closest.

    The steps stay as they are where the two grids leave too few bits.
    """
    if operand is None:
        return np.asarray(steps, np.float64)
    taken = int(qmath.significant_bits(operand.scale))
    unit = 1.0
    if result is not None:
        mine = int(qmath.significant_bits(result.scale))
        if _FLOAT_BITS - taken - mine >= _FEWEST_BITS:
            unit, taken = float(np.ldexp(np.frexp(result.scale)[0], mine)), taken + mine
    bits = _FLOAT_BITS - taken
    if bits < _FEWEST_BITS:
        return np.asarray(steps, np.float64)
    above = qmath.short_steps(np.asarray(steps, np.float64) / unit * (1 - 2.0**-40), bits)
    if up:
        return above * unit
    below = _shorter(np.asarray(steps, np.float64) / unit, bits)
    return np.where(above * unit - steps < steps - below * unit, above, below) * unit


def result_grid(layer: Layer, grids: Mapping[str, ActivationQuant]) -> ActivationQuant | None:
    """The grid that a layer writes its result on; None where it writes floats."""
    return grids.get(str(fused_output(layer.output).name))


def _shorter(scale: NDArray[np.float64] | float, bits: int) -> NDArray[np.float64]:
    """The largest number of so many significant bits that is not larger."""
    mantissa, exponent = np.frexp(scale)
    return np.asarray(np.ldexp(np.floor(np.ldexp(mantissa, bits)), exponent - bits))


def _on_one_unit(grids: list[ActivationQuant], view: GraphView) -> list[float] | None:
    """Steps that are odd multiples of one unit; None where some tensor would lose too much.

    They are the next larger ones, but for tensors with a bound: a range beyond it keeps the Clip from being merged.
    """
    if not all(_is_plain(grid) for grid in grids):
        return None
    bounded = np.array([_is_bounded(grid, view) for grid in grids])
    scales, bits = np.array([grid.scale for grid in grids]), _UNIT_BITS + int(bounded.any())
    unit = 2.0 ** (np.frexp(scales.max())[1] - bits)
    if qmath.odd_steps(scales, unit).max() >= 2.0**bits * unit:
        unit *= 2
    if scales.min() < _FEWEST_UNITS * unit:
        return None
    below = (np.floor(scales / unit) - (np.floor(scales / unit) % 2 == 0)) * unit
    return [float(step) for step in np.where(bounded, below, qmath.odd_steps(scales, unit))]


def _is_bounded(grid: ActivationQuant, view: GraphView) -> bool:
    """Whether a Clip ends where the codes do."""
    bound = upper_bound(view.values[grid.tensor])
    return bound is not None and grid.high <= bound * (1 + 1 / (2 * grid.qmax))


def _is_plain(grid: ActivationQuant) -> bool:
    return not (grid.channel_scale or grid.offset or grid.rounding is not None)


def _holds(grids: list[ActivationQuant]) -> bool:
    """Whether no code that is written depends on the order of float32 operations; the last grid is the result's."""
    *read, written = [(grid.scale, grid.zero_point) for grid in grids]
    if len(read) != 2:  # a Concat of any number of tensors
        return all(qmath.add_margin(one, (1.0, 0), written, highest=(255, 0)).holds for one in read)
    return qmath.add_margin(read[0], read[1], written).holds


def _meetings(view: GraphView, grids: Mapping[str, ActivationQuant]) -> Iterator[tuple[ir.Node, list[str]]]:
    """The Add and Concat nodes, with the tensors whose grids they read and, at last, the one that they write."""
    for node in view.model.graph:
        if node.op_type not in MEETING or node.domain != "":
            continue
        read = [nearest(v, grids) for v in node.inputs if v is not None and constant(v) is None]
        written = grids.get(str(fused_output(node.outputs[0]).name))
        if len(read) > 1 and None not in read and written is not None:
            yield node, [grid.tensor for grid in (*read, written) if grid is not None]


def _joined(meetings: list[tuple[ir.Node, list[str]]]) -> list[list[str]]:
    """Sets of tensors that meet, directly or by way of others."""
    sets: list[list[str]] = []
    for _, names in meetings:
        touching = [one for one in sets if set(one) & set(names)]
        sets = [one for one in sets if one not in touching]
        sets.append(list(dict.fromkeys([t for one in (*touching, names) for t in one])))
    return sets
