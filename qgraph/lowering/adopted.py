"""The plan that puts a file's own grids on its float network.

A tensor that the file left in floats between two grids still needs a grid for the kernels around it to run on integers.
Its range then follows from those of the tensors that it is computed from, by interval arithmetic: of Add, Mul, Concat,
Relu, pooling and the like. Nothing can leave such a range, so nothing is clipped. For what a layer computes this would
be far too wide; there samples decide, and without samples the layer runs in floats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.errors import DataError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_transparent, nearest
from qgraph.lowering.file_grids import FileGrid, FileWeight
from qgraph.lowering.lift import Lifted
from qgraph.onnxfile.edit import constant
from qgraph.plan import codes
from qgraph.plan.blocks import BLOCK_OPSET, why_no_blocks, why_not_on_grid
from qgraph.plan.grids import initial_plan, sound
from qgraph.plan.plan import MAX_BITS, ActivationQuant, KeptFloat, LayerQuant, QuantPlan, WeightQuant
from qgraph.plan.ranges import Ranges
from qgraph.plan.request import choose_recipe
from qgraph.plan.words import TargetCpu

_BOUNDED = {"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0), "HardSigmoid": (0.0, 1.0)}
_KEEPS_RANGE = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Split"})
_MOVED = 0.5 + 1e-3  # of a code: within it the same code is meant


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedLayer:
    """What became of a layer: what `moved` of its weight, what was `lost` of its operand; empty if nothing."""

    name: str
    op: str
    bits: int
    runs: str
    moved: str = ""
    lost: str = ""


@dataclass(frozen=True, eq=False)
class FileRanges:
    """The range of each tensor: of its grid in the file, else of what it is computed from, else of samples."""

    view: GraphView
    grids: Mapping[str, FileGrid]
    observed: Ranges | None = None

    def range_of(self, tensor: str) -> tuple[float, float]:
        """(0, 0) where nothing is known."""
        return self._range(self.view.values[tensor]) or (0.0, 0.0)

    def _range(self, value: ir.Value) -> tuple[float, float] | None:
        grid = self.grids.get(str(value.name))
        if grid is not None:
            return grid.ends
        array = constant(value)
        if array is not None:
            return (float(array.min()), float(array.max())) if array.size else None
        return self._computed(value) or self._seen(str(value.name))

    def _seen(self, tensor: str) -> tuple[float, float] | None:
        try:
            return None if self.observed is None else self.observed.range_of(tensor)
        except (KeyError, DataError):
            return None

    def _computed(self, value: ir.Value) -> tuple[float, float] | None:
        """By interval arithmetic over the operator that computes the tensor."""
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type in _BOUNDED:
            return _BOUNDED[node.op_type]
        keeps = is_transparent(node) or node.op_type in _KEEPS_RANGE
        if not keeps and node.op_type not in ("Add", "Mul", "Concat", "Relu", "Clip"):
            return None
        first = node.inputs[:1] if keeps else node.inputs
        parts = [(-np.inf, np.inf) if v is None else self._range(v) for v in first]  # of Clip, a bound that is left out
        if any(part is None for part in parts):
            return None
        return _combined(node.op_type, [part for part in parts if part is not None])


def _combined(op: str, parts: list[tuple[float, float]]) -> tuple[float, float]:
    if op == "Relu":
        return max(parts[0][0], 0.0), max(parts[0][1], 0.0)
    if op == "Clip":
        low, high = parts[1][0] if len(parts) > 1 else -np.inf, parts[2][1] if len(parts) > 2 else np.inf
        return float(np.clip(parts[0][0], low, high)), float(np.clip(parts[0][1], low, high))
    if op == "Add":
        return sum(low for low, _ in parts), sum(high for _, high in parts)
    if op == "Mul":
        corners = [a * b for a in parts[0] for b in parts[1]]
        return min(corners), max(corners)
    return min(low for low, _ in parts), max(high for _, high in parts)


def adopted_plan(
    view: GraphView, lifted: Lifted, *, observed: Ranges | None = None, target_cpu: TargetCpu = "vnni"
) -> tuple[QuantPlan, tuple[AdoptedLayer, ...]]:
    """The plan, and what became of every layer.

    With `target_cpu` "any", weights that could saturate on CPUs without VNNI move to a coarser step.
    """
    ranges = FileRanges(view, lifted.activations, observed)
    kind = 8 if lifted.activations else "dynamic" if lifted.dynamic else None
    recipe = choose_recipe(
        "minmax", True, activations=kind, target_cpu="vnni", dynamic_products=bool(lifted.dynamic) and kind == 8
    )
    plan = initial_plan(view, recipe, ranges)
    plan = dataclasses.replace(plan, recipe="adopted")
    if kind != MAX_BITS:
        plan = _as_stored(plan, view, lifted)
    plan = plan.map_activations(lambda grid: _own_grid(grid, lifted, view))
    plan = _without_unknown(plan, view, ranges)
    grids, layers = plan.operand_grids, view.by_name
    runs = {
        quant.name: "floats" if nearest(layers[quant.name].input, grids) is None else quant.runs
        for quant in plan.layers
        if quant.runs != "dynamic"
    }
    plan = plan.map_layers(
        lambda q: _own_weight(q, layers[q.name], lifted, runs.get(q.name, "dynamic"), view.model.opset)
    )
    wished = {quant.name: quant for quant in plan.layers}
    plan = sound(plan, view, target_cpu=target_cpu)
    runs |= {q.name: q.runs for q in plan.layers if q.runs == "blocks"}
    told = (_told(q, wished[q.name], layers[q.name], lifted, runs.get(q.name, "dynamic")) for q in plan.layers)
    return plan, tuple(told)


def _as_stored(plan: QuantPlan, view: GraphView, lifted: Lifted) -> QuantPlan:
    """The plan without the layers that the file holds in floats: without grids between them, codes gain no time."""
    stored = {q.name for q in plan.layers if _file_weight(view.by_name[q.name], lifted) is not None}
    floats = tuple(
        KeptFloat(name=q.name, why="the file holds it in floats") for q in plan.layers if q.name not in stored
    )
    layers = tuple(q for q in plan.layers if q.name in stored)
    return dataclasses.replace(plan, layers=layers, kept_float=(*plan.kept_float, *floats))


def _own_grid(grid: ActivationQuant, lifted: Lifted, view: GraphView) -> ActivationQuant:
    """The file's grid of the tensor in codes from 0, without those that a Relu never reaches."""
    found = lifted.activations.get(grid.tensor)
    if found is None or found.high - found.low > 255:
        return grid
    zero, highest = int(found.zero_point.reshape(-1)[0]) - found.low, found.high - found.low
    if zero and view.non_negative.get(grid.tensor):
        zero, highest = 0, highest - zero
    bits = max(int(np.ceil(np.log2(highest + 1))), 2)
    return dataclasses.replace(grid, bits=bits, scale=float(found.scale.max()), zero_point=zero)


def _without_unknown(plan: QuantPlan, view: GraphView, ranges: FileRanges) -> QuantPlan:
    """The plan without grids on tensors whose range is not known; layers around them run in floats."""
    unknown = {grid.tensor for grid in plan.activations if ranges.range_of(grid.tensor) == (0.0, 0.0)}
    if not unknown:
        return plan
    values = [view.values[tensor] for tensor in unknown]
    near = {str(node.name) for value in values for node in (value.producer(), *(u.node for u in value.uses())) if node}
    near |= {str(n.name) for v in values if (p := v.producer()) for i in p.inputs if i and (n := i.producer())}
    kept = tuple(grid for grid in plan.activations if grid.tensor not in unknown)
    grids = {grid.tensor: grid for grid in kept}

    def without(layer: LayerQuant) -> LayerQuant:
        alone = nearest(view.by_name[layer.name].input, grids) is None
        floats = layer.runs == "integers" and (layer.name in near or alone)
        return dataclasses.replace(layer, runs="floats") if floats else layer

    return dataclasses.replace(plan, activations=kept).map_layers(without)


def _own_weight(quant: LayerQuant, layer: Layer, lifted: Lifted, runs: str, opset: int) -> LayerQuant:
    """The file's grid of the weight, if a plan can hold it; else the grid that spans the weight."""
    found = _file_weight(layer, lifted)
    if found is None or found.grid.high - found.grid.low > 255:
        return quant
    if found.grid.block:
        return _in_blocks(quant, layer, found, runs, kernel=not lifted.activations and opset >= BLOCK_OPSET)
    steps = _steps(layer, found)
    grid = None if steps is None else _smallest_grid(layer.weight_array(), *steps)
    if grid is None or (grid.bits == MAX_BITS and any(grid.zero_point) and runs != "floats" and layer.op != "Conv"):
        return quant  # products of matrices on bytes have no zero point
    return dataclasses.replace(quant, weight=grid)


def _in_blocks(quant: LayerQuant, layer: Layer, found: FileWeight, runs: str, *, kernel: bool) -> LayerQuant:
    """The blocks of the file, whose steps become whole multiples of one unit per output; a byte holds a multiple.

    A layer in floats reads them as they are stored, where onnxruntime has the kernel for it (`qgraph.plan.blocks`).
    """
    grid, axis = found.grid, found.grid.axis
    whole = np.array_equal(layer.weight_array(), found.values) and grid.scale.ndim == 2
    if runs != "floats" or why_no_blocks(layer) or axis != 1 - layer.output_axis or not whole:
        return quant
    steps = grid.scale.astype(np.float64)
    most = steps.max(axis=axis, keepdims=True)
    unit = np.where(most > 0, most, 1.0) / 255
    bits = 4 if grid.high - grid.low < 16 else 8
    zero = np.broadcast_to(grid.zero_point - grid.low - 2 ** (bits - 1), steps.shape)
    made = WeightQuant(
        bits=bits,
        scale=tuple((np.maximum(np.rint(steps / unit), 1) * unit).ravel().tolist()),
        zero_point=tuple(zero.ravel().tolist()) if zero.any() else (0,),
        unit=tuple(unit.ravel().tolist()),
        granularity=qmath.Granularity(axis=axis, group=grid.block),
        symmetric=False,
    )
    fast = kernel and not why_not_on_grid(made)
    return dataclasses.replace(quant, weight=made, runs="blocks" if fast else quant.runs)


def _file_weight(layer: Layer, lifted: Lifted) -> FileWeight | None:
    return lifted.weights.get((str(layer.node.name), layer.weight_index))


def _steps(layer: Layer, found: FileWeight) -> tuple[NDArray[np.float64], int | None] | None:
    """The steps of a weight and the axis along which they differ; None where a kernel cannot take them.

    A BatchNormalization that was folded into the weight since has multiplied each channel, and so its step.
    """
    weight, axis = layer.weight_array(), found.grid.axis
    axis = None if axis is None else axis % weight.ndim
    if weight.shape != found.values.shape or axis not in (None, layer.scale_axis):
        return None
    steps = found.grid.scale.reshape(-1).astype(np.float64)
    steps = np.where(steps > 0, steps, 1.0)  # of a channel that is zero
    if np.array_equal(weight, found.values) or layer.scale_axis is None:
        return steps, axis
    rows = qmath.Granularity(axis=layer.scale_axis).rows
    now, before = (np.abs(rows(array)).max(axis=1).astype(np.float64) for array in (weight, found.values))
    return steps * np.where(before > 0, now / np.where(before > 0, before, 1), 1), layer.scale_axis


def _smallest_grid(weight: NDArray[np.float32], steps: NDArray[np.float64], axis: int | None) -> WeightQuant | None:
    """The grid of fewest bits that holds the file's codes; None where they do not fit eight.

    Codes that are all multiples of a number are divided by it, and those of few bits may lie on any side of zero: files
    hold them as bytes.
    """
    granularity = qmath.Granularity(axis=axis)
    rows = granularity.rows(weight).astype(np.float64)
    whole = np.rint(rows / steps.reshape(-1, 1)).astype(np.int64)
    step = np.maximum(np.gcd.reduce(whole, axis=1), 1)
    low, high = (whole // step[:, None]).min(axis=1), (whole // step[:, None]).max(axis=1)
    bits = max(int(np.ceil(np.log2(max(int((high - low).max()), 1) + 1))), 2)
    symmetric = bool((np.maximum(-low, high) < 2 ** (bits - 1)).all())
    bottom, top = -(2 ** (bits - 1)) - low, 2 ** (bits - 1) - 1 - high
    zero = np.clip(0, bottom, top)
    if bits > MAX_BITS:
        return None
    scale = (steps * step).astype(np.float32)
    return WeightQuant(
        bits=bits,
        scale=tuple(float(s) for s in scale),
        zero_point=(0,) if symmetric else tuple(int(z) for z in zero),
        granularity=granularity,
        symmetric=symmetric,
    )


def _told(quant: LayerQuant, wished: LayerQuant, layer: Layer, lifted: Lifted, runs: str) -> AdoptedLayer:
    weight, found = layer.weight_array(), _file_weight(layer, lifted)
    moved = ""
    if found is None:
        moved = "the file holds it in floats: a new grid spans it"
    elif quant.weight != wished.weight:
        share = float(np.mean(codes.quantized(weight, quant.weight) != weight))
        moved = f"a coarser step, so that no sum overflows: {share:.0%} of its values moved"
    else:
        error = np.abs(codes.quantized(weight, quant.weight) - weight).max(initial=0)
        if error > 1e-6 * np.abs(weight).max(initial=1e-30):
            if quant.weight.unit:
                moved = f"steps of its blocks, by up to {error / np.abs(weight).max():.2%} of the largest weight"
            else:
                why = "has blocks" if found.grid.block else "does not fit a kernel"
                moved = f"its grid in the file {why}: a new grid spans it"
    operand = nearest(layer.input, lifted.activations) if runs != "dynamic" else None
    count = 0 if operand is None else operand.high - operand.low + 1
    lost = f"its operand has {2**MAX_BITS} codes, {count:,} in the file" if count > 2**MAX_BITS else ""
    return AdoptedLayer(name=quant.name, op=quant.op, bits=quant.weight.bits, runs=runs, moved=moved, lost=lost)
