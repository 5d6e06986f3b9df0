"""plan -> the graph a user deploys (`--format qdq`): QuantizeLinear/DequantizeLinear pairs and packed weights.

The rules under which onnxruntime turns the result into integer kernels:

* activations are uint8; a grid below 8 bits is QuantizeLinear -> Min(qmax) -> DequantizeLinear, which still fuses;
* weights are int8 behind DequantizeLinear, per output channel and without zero points: those of narrow grids are
  subtracted while unpacking;
* a grid is restated behind operators that only move values;
* the offset of a grid is folded into the bias of every layer that reads the tensor without padding it (LSQ+, Eq. 5).
  Padding is with zeros, which carry no offset: layers that pad, and operators that are not layers, read the tensor with
  its offset added.

Weights of k < 8 bits take k bits: bit plane i of the two's-complement codes holds bit i of eight weights in each byte,
and five standard operators unpack them (`_unpack`). onnxruntime folds these when it loads the file, so that unpacking
costs nothing per inference. A layer that runs in floats gets Cast and Mul instead of DequantizeLinear, which
onnxruntime folds as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import PlanError
from qgraph.graph.layers import Layer, attribute, pads
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import upper_bound
from qgraph.lowering.bit_planes import pack_bits
from qgraph.lowering.compact import compact
from qgraph.lowering.places import offset_sums, producers, put_in_place
from qgraph.onnxfile.edit import add_initializer, append_node, constant
from qgraph.onnxfile.lazy_array import Later
from qgraph.onnxfile.model import Model
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, Rounding, WeightQuant
from qgraph.plan.staircase import lookup, staircase

_MOVES_INTEGERS = frozenset(  # transparent operators that onnxruntime has uint8 kernels for
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Expand", "Resize"}
)


def export(model: Model, plan: QuantPlan, *, packed: bool = True) -> ir.Model:
    """The deployable model: integers where onnxruntime has kernels for them, with the interface of `model`.

    Without `packed`, weights of few bits take a byte each: the same numbers, in a graph that is made and loaded sooner.
    """
    view = GraphView(model)
    plan.check_model(model.digest, model.source)
    _check_groups(plan)
    _check_factors(plan, view)
    net = put_in_place(model, plan, lambda graph: _QdqEmitter(graph, producers(plan, view), packed=packed))
    _spread_dilated_pools(net.graph)
    compact(net, known=[*view.values, *(str(node.name) for node in model.graph)])
    return net


def _check_groups(plan: QuantPlan) -> None:
    """Raise `PlanError` where groups share a scale."""
    for quant in plan.layers:
        if quant.weight.granularity.group is not None:
            raise PlanError(
                f"layer '{quant.name}' has a scale {quant.weight.granularity}, which deployable files do not hold yet: "
                f"give it a scale per channel, or pass --format float to simulate it"
            )


def _spread_dilated_pools(graph: ir.Graph) -> None:
    """Let an AveragePool with dilations read (code - zero point) scale in plain operators: onnxruntime would make it an
    integer kernel that knows no dilations, and then not load the file.
    """
    for node in [n for n in graph if n.op_type == "AveragePool" and n.domain == "" and "dilations" in n.attributes]:
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        scale, zero_point = constant(source.inputs[1]), constant(source.inputs[2])
        if scale is None or zero_point is None:
            continue
        codes = append_node(graph, "Cast", source.inputs[:1], {"to": ir.DataType.FLOAT}).outputs[0]
        point = add_initializer(graph, "pool/zero_point", zero_point.astype(np.float32))
        steps = append_node(graph, "Sub", [codes, point], {}).outputs[0]
        node.replace_input_with(0, append_node(graph, "Mul", [steps, source.inputs[1]], {}).outputs[0])
    graph.sort()


def _check_factors(plan: QuantPlan, view: GraphView) -> None:
    """Raise `PlanError` where factors of a tensor are not in the weights on both sides of it."""
    factors = {a.tensor: a.channel_scale for a in plan.activations if a.channel_scale}
    written = {a.tensor for a in producers(plan, view).values()}
    read: set[str] = set()
    for quant in plan.layers:
        tensor = str(view.by_name[quant.name].input.name) if quant.name in view.by_name else ""
        read.add(tensor)
        if quant.weight.input_scale != factors.get(tensor, ()):
            raise PlanError(
                f"layer '{quant.name}' reads '{tensor}', whose channel_scale is not its weight's input_scale: a "
                f"deployable plan has both or neither; pass --format float to simulate one step per channel"
            )
    lost = sorted(set(factors) - (written & read))
    if lost:
        raise PlanError(f"no quantized layer can carry the channel_scale of '{lost[0]}': pass --format float")


def _chosen(
    mask: NDArray[np.bool_], shape: tuple[int, ...], axis: int
) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], tuple[int, ...]]:
    """What takes the channels of a mask out of a weight of this shape, and the shape of what is taken."""
    taken = tuple(int(mask.sum()) if i == axis else size for i, size in enumerate(shape))
    return lambda codes: np.compress(mask, codes, axis=axis), taken


def _cut_by_codes(value: ir.Value, quant: ActivationQuant) -> bool:
    """Whether the largest code is below the bound of the Clip that wrote a tensor, which then cuts nothing more.

    onnxruntime merges a Clip into an integer convolution only where the type of the codes ends at its bound.
    """
    clip, bound = value.producer(), upper_bound(value)
    low = constant(clip.inputs[1]) if clip is not None and bound is not None else None
    plain = quant.role == "tensor" and quant.bits < 8 and not quant.zero_point and not quant.offset
    from_zero = low is not None and not low.any()
    return plain and from_zero and bound is not None and round(bound / quant.scale) >= quant.qmax


def _is_row(bias: NDArray[Any], layer: Layer) -> bool:
    """Whether the bias has one value per output channel (Gemm also takes matrices, columns and single numbers)."""
    return bool(bias.shape in ((channels := layer.weight_array().shape[layer.output_axis],), (1, channels)))


def _names_axes(node: ir.Node) -> bool:
    """Whether a Pad or Resize is not for all axes alike: onnxruntime's layout optimiser mistakes such ones."""
    if node.op_type == "Pad":
        return len(node.inputs) > 3 and node.inputs[3] is not None
    kept = attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    return node.op_type == "Resize" and ("axes" in node.attributes or kept)


class _QdqEmitter:
    def __init__(self, graph: ir.Graph, producers: Mapping[str, ActivationQuant], *, packed: bool) -> None:
        self.graph = graph
        self.packed = packed
        self.producers = producers  # layers that divide their result by the factors of its channels
        self.grids: dict[tuple[float, int], tuple[ir.Value, ir.Value]] = {}
        self.shared: dict[str, ir.Value] = {}
        self.weights: dict[tuple[object, ...], ir.Value] = {}
        self.integers: dict[ir.Value, ir.Value] = {}  # the codes behind each dequantized value
        self.steps: dict[ir.Value, ActivationQuant] = {}  # the grid of each that is dequantized and no more
        self.offsets: dict[ir.Value, tuple[ir.Value, float]] = {}  # what it was before its offset was added

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        """The weight from its codes, stored once for all layers that read it on one grid."""
        step = self._take_codes(layer) if operand is None else np.float32(1)
        factors = self._factors(layer)
        steps = () if factors is None else tuple(factors.tolist())
        key = (layer.weight, quant.weight, operand is None, float(step), steps)
        if key not in self.weights:
            self.weights[key] = self._weight(layer, quant, operand, step)
        return self.weights[key]

    def _weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None, step: np.float32) -> ir.Value:
        grid = quant.weight
        weight = layer.weight_array()
        codes = Later.of(layer.weight, lambda: weights.codes(weight, grid), np.int8)
        stem = str(layer.weight.name)
        shifted = operand is not None and weights.is_shifted(grid)
        finer = weights.finer(grid) if operand is not None else (1,) * len(grid.widths)
        integers = self._stored(stem, codes, grid, finer, shifted=shifted)
        scale = (self._scale(layer, grid) / np.asarray(finer)).astype(np.float32)
        per_channel = scale.size > 1
        if operand is not None:
            # without a zero point onnxruntime folds the pair to floats and requantizes them on a grid of its own
            points = (np.asarray(finer) * grid.zero_point).astype(np.int8)
            zero = np.zeros(scale.shape, np.int8) if shifted else np.broadcast_to(points, scale.shape)
            shape = scale.shape if per_channel else ()
            inputs = [self._constant(f"{stem}.s", scale.reshape(shape)), self._shared(zero.reshape(shape))]
            return self._op(
                "DequantizeLinear", integers, *inputs, **({"axis": grid.granularity.axis} if per_channel else {})
            )
        return self._float_weight(stem, integers, scale * step, grid, weight.ndim)

    def _take_codes(self, layer: Layer) -> np.float32:
        """Let a layer that runs in floats read its operand in steps of the grid, the codes less their zero point, and
        return the step for its weight to carry.

        Float weights between DequantizeLinear and QuantizeLinear are taken by onnxruntime for weights that it has to
        quantize itself.
        """
        grid = self.steps.get(layer.input)
        if grid is None or layer.op == "MatMul":
            return np.float32(1)
        codes = self._op("Cast", self.integers[layer.input], to=ir.DataType.FLOAT)
        if grid.zero_point:
            codes = self._op("Sub", codes, self._shared(np.float32(grid.zero_point)))
        codes.shape, codes.type = layer.input.shape, layer.input.type
        layer.node.replace_input_with(1 - layer.weight_index, codes)
        return np.float32(grid.scale)

    def _scale(self, layer: Layer, grid: WeightQuant) -> NDArray[np.float32]:
        scale = weights.dequantization_scale(grid)
        factors = self._factors(layer)
        return scale if factors is None else scale / factors

    def _factors(self, layer: Layer) -> NDArray[np.float32] | None:
        grid = self.producers.get(layer.name)
        return None if grid is None else np.asarray(grid.channel_scale, np.float32)

    def bias(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value | None:
        """Gemm fuses with an int32 bias alone, on the grid of its accumulator; Conv takes floats as they are."""
        floats, factors = constant(layer.bias), self._factors(layer)
        if floats is not None and factors is not None:
            return self._constant(str(layer.bias.name), floats / factors)  # type: ignore[union-attr]
        plain = attribute(layer.node, "beta", 1.0) == attribute(layer.node, "alpha", 1.0) == 1.0
        if layer.op != "Gemm" or operand is None or floats is None or not plain or not _is_row(floats, layer):
            return None
        scale = weights.accumulator_scale(quant.weight, operand)
        codes = np.rint(floats.reshape(-1) / scale.astype(np.float64))
        shifted = weights.is_shifted(quant.weight) or not any(quant.weight.zero_point)
        if not shifted or np.abs(codes).max(initial=0) >= 2**31:
            return None
        stem = str(layer.bias.name if layer.bias is not None else layer.name)
        per_channel = scale.size > 1
        scale = scale if per_channel else scale.reshape(())
        inputs = [
            self._constant(f"{stem}.q", codes.astype(np.int32)),
            self._constant(f"{stem}.s", scale),
            self._shared(np.zeros(scale.shape, np.int32)),
        ]
        return self._op("DequantizeLinear", *inputs, **({"axis": 0} if per_channel else {}))

    def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        if quant.rounding is None:
            shifted = self._op("Sub", value, self._shared(np.float32(quant.offset))) if quant.offset else value
            integers = self._codes(shifted, *self._grid(quant), *self._highest(value, quant))
            if quant.channel_scale or _cut_by_codes(value, quant):
                self._let_codes_clip(value)
        else:
            integers = self._rounded(value, quant, quant.rounding)
        return self._dequantized(integers, value, quant)

    def _codes(self, value: ir.Value, scale: ir.Value, zero_point: ir.Value, *highest: int) -> ir.Value:
        """Codes up to `highest`: one number, or one for each channel along axis 1."""
        integers = self._op("QuantizeLinear", value, scale, zero_point)
        if min(highest) >= 255:
            return integers
        shape = [1, -1, *[1] * (len(value.shape or ()) - 2)] if len(highest) > 1 else []
        return self._op("Min", integers, self._shared(np.asarray(highest, np.uint8).reshape(shape)))

    def _rounded(self, value: ir.Value, quant: ActivationQuant, rounding: Rounding) -> ir.Value:
        """Codes by Q-Rater's rounding: looked up by an 8-bit code, or one Where for each threshold."""
        k = rounding.subdivision
        if k:
            scale = self._constant(f"{value.name}/fine", np.float32(quant.scale) / np.float32(k))
            fine = self._codes(value, scale, self._shared(np.uint8(quant.zero_point * k)), quant.qmax * k)
            table = self._constant(f"{value.name}/codes", lookup(quant))
            return self._op("Gather", table, self._op("Cast", fine, to=ir.DataType.INT32))
        thresholds, codes = staircase(quant)
        levels = [self._shared(np.uint8(code)) for code in codes]
        result = levels[0]
        for threshold, level in zip(thresholds, levels[1:], strict=True):
            reached = self._op("GreaterOrEqual", value, self._constant(f"{value.name}/threshold", threshold))
            result = self._op("Where", reached, level, result)
        return result

    def fold_offset(self, layer: Layer, quant: LayerQuant) -> tuple[ir.Value, NDArray[np.float64]] | None:
        if layer.input not in self.offsets or pads(layer):
            return None
        plain, offset = self.offsets[layer.input]
        return plain, offset_sums(layer, quant, offset)

    def _highest(self, value: ir.Value, quant: ActivationQuant) -> tuple[int, ...]:
        """The highest code of every channel, or of all; where a Clip ends a tensor with steps per channel, that of its
        bound.
        """
        if not quant.channel_scale:
            return quant.channel_qmax
        highest, bound = np.asarray(quant.channel_qmax), upper_bound(value)
        if bound is not None:
            step = quant.scale * np.asarray(quant.channel_scale)
            highest = np.minimum(highest, np.rint(np.float32(bound) / step.astype(np.float32)).astype(np.int64))
        return tuple(int(code) for code in highest)

    def _let_codes_clip(self, value: ir.Value) -> None:
        """Make a Clip a ReLU where the codes are cut at its bound, which differs by channel."""
        clip = value.producer()
        if clip is not None and upper_bound(value) is not None:
            clip.op_type = "Relu"
            clip.resize_inputs(1)

    def carry(self, node: ir.Node, quantized: ir.Value, quant: ActivationQuant) -> ir.Value | None:
        """Move the codes instead of the floats: one byte per value, and no rounding in between."""
        if node.op_type not in _MOVES_INTEGERS or len([v for v in node.outputs if v.uses()]) > 1 or _names_axes(node):
            return None
        if quantized not in self.integers:  # an operator without such a kernel lies in between
            return None
        if quantized not in self.integers or (node.op_type == "Pad" and quant.offset):  # then zero is no code
            return None
        node.replace_input_with(0, self.integers[quantized])
        if node.op_type == "Pad":
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, self._shared(np.uint8(quant.zero_point)))
        moved = node.outputs[0]
        floats = moved.type
        moved.type = ir.TensorType(ir.DataType.UINT8)
        result = self._dequantized(moved, moved, quant)
        result.type = floats
        return result

    def _dequantized(self, integers: ir.Value, like: ir.Value, quant: ActivationQuant) -> ir.Value:
        result = self._op("DequantizeLinear", integers, *self._grid(quant))
        if quant.offset:
            plain, result = result, self._op("Add", result, self._shared(np.float32(quant.offset)))
            self.offsets[result] = plain, quant.offset
            plain.shape, plain.type = like.shape, like.type
        result.shape, result.type = like.shape, like.type
        self.integers[result] = integers
        if not quant.offset:
            self.steps[result] = quant
        return result

    def _float_weight(
        self, stem: str, integers: ir.Value, factor: NDArray[np.float32], grid: WeightQuant, rank: int
    ) -> ir.Value:
        shape = [-1 if i == grid.granularity.axis else 1 for i in range(rank)] if len(grid.scale) > 1 else []
        real = self._op("Cast", integers, to=ir.DataType.FLOAT)
        if not grid.symmetric:
            zero = np.asarray(grid.zero_point, np.float32).reshape(shape)
            real = self._op("Sub", real, self._constant(f"{stem}.z", zero))
        scale = factor.reshape(shape)
        return self._op("Mul", real, self._constant(f"{stem}.s", scale))

    def _stored(self, stem: str, codes: Later, grid: WeightQuant, finer: tuple[int, ...], *, shifted: bool) -> ir.Value:
        """Codes times `finer`, less their zero points where `shifted`; channels of one width are packed together, then
        gathered back into their order.
        """
        axis, widths = grid.granularity.axis or 0, np.asarray(grid.channel_bits)
        zero = np.asarray(grid.zero_point, np.int8) if shifted else np.zeros(1, np.int8)
        zero = grid.granularity.lay(zero, codes.shape) if zero.size > 1 else zero
        if not grid.channel_bits:
            return self._integers(stem, codes, zero, grid.bits, finer[0])
        parts, order = [], np.argsort(widths, kind="stable")
        for bits, factor in sorted(set(zip(grid.channel_bits, finer, strict=True))):
            alike = codes.map(*_chosen(widths == bits, codes.shape, axis), np.int8)
            points = np.compress(widths == bits, zero, axis=axis) if zero.size > 1 else zero
            parts.append(self._integers(f"{stem}.{bits}", alike, points, bits, factor))
        together = parts[0] if len(parts) == 1 else self._op("Concat", *parts, axis=axis)
        if (order == np.arange(order.size)).all():
            return together
        places = np.argsort(order).astype(np.min_scalar_type(order.size))
        indices = self._op("Cast", self._constant(f"{stem}.order", places), to=ir.DataType.INT64)
        return self._op("Gather", together, indices, axis=axis)

    def _integers(self, stem: str, codes: Later, zero: NDArray[np.int8], bits: int, finer: int) -> ir.Value:
        """Codes less `zero`, times `finer`; 8-bit ones have neither."""
        if bits == 8:
            return self._constant(f"{stem}.q", codes)
        if self.packed:
            return self._unpack(stem, codes, zero, bits, finer)
        return self._constant(f"{stem}.q", codes.map(lambda c: (c - zero) * np.int8(finer), codes.shape, np.int8))

    def _unpack(self, stem: str, codes: Later, zero: NDArray[np.int8], bits: int, finer: int) -> ir.Value:
        """Codes from planes, less `zero`, times `finer`: shift bit j to the top, then to the bottom, and weigh planes
        by 1, 2, ..., -2^(bits-1).
        """
        width = -(-codes.size // 8)
        planes = self._constant(f"{stem}.q", codes.map(lambda c: pack_bits(c, bits), (bits, width), np.uint8))
        lanes = self._shared(np.arange(7, -1, -1, dtype=np.uint8).reshape(8, 1, 1))
        top = self._op("BitShift", planes, lanes, direction="LEFT")
        bit = self._op("BitShift", top, self._shared(np.uint8(7)), direction="RIGHT")
        worth = finer * np.array([[*(2**i for i in range(bits - 1)), -(2 ** (bits - 1))]], np.int8)
        flat = self._op("MatMulInteger", self._shared(worth), bit)
        if codes.size % 8:
            flat = self._op("Reshape", flat, self._shared(np.array([-1], np.int64)))
            start, size = self._shared(np.array([0], np.int64)), self._shared(np.array([codes.size], np.int64))
            flat = self._op("Slice", flat, start, size)
        shaped = self._op("Reshape", flat, self._shared(np.array(codes.shape, np.int64)))
        if zero.any():
            points = self._op("Cast", self._constant(f"{stem}.z", zero * np.int8(finer)), to=ir.DataType.INT32)
            shaped = self._op("Sub", shaped, points)
        return self._op("Cast", shaped, to=ir.DataType.INT8)

    def _grid(self, quant: ActivationQuant) -> tuple[ir.Value, ir.Value]:
        key = (quant.scale, quant.zero_point)
        if key not in self.grids:
            scale = self._constant(f"s{len(self.grids)}", np.asarray(quant.scale, np.float32))
            self.grids[key] = scale, self._shared(np.uint8(quant.zero_point))
        return self.grids[key]

    def _shared(self, array: NDArray[np.generic] | np.generic) -> ir.Value:
        """A small constant, stored once for the whole graph."""
        data = np.asarray(array)
        numbers = data.reshape(-1).tolist()
        content = str(numbers[0]) if len(set(numbers)) == 1 else ",".join(map(str, numbers))
        name = f"{data.dtype}{'x'.join(map(str, data.shape))}:{content}"
        if name not in self.shared:
            self.shared[name] = add_initializer(self.graph, name, data)
        return self.shared[name]

    def _constant(self, name: str, array: NDArray[Any] | np.generic | Later) -> ir.Value:
        if not isinstance(array, Later) and array.ndim:
            array = np.ascontiguousarray(array)
        return add_initializer(self.graph, name, array)

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        return append_node(self.graph, op_type, inputs, attributes).outputs[0]
