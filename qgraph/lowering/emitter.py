"""Grids as QuantizeLinear and DequantizeLinear, laid out so that onnxruntime makes integer kernels of them.

* activations are uint8; a grid below 8 bits is QuantizeLinear -> Min(qmax) -> DequantizeLinear, which still fuses;
* weights are int8 behind DequantizeLinear, per output channel and without zero points: those of narrow grids are
  subtracted while unpacking;
* a grid is repeated behind operators that only move values;
* the offset of a grid is folded into the bias of every layer that reads the tensor without padding it (LSQ+, Eq. 5).
  Padding is with zeros, which have no offset: layers that pad, and operators that are not layers, read the tensor with
  its offset added.

A layer that runs in floats gets Cast and Mul instead of DequantizeLinear, which onnxruntime folds while it loads the
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import PlanError
from qgraph.graph.layers import Layer, attribute, pads
from qgraph.graph.tensors import upper_bound
from qgraph.lowering.blocks import blocks
from qgraph.lowering.dynamic import DynamicProducts
from qgraph.lowering.nodes import Nodes
from qgraph.lowering.packing import StoredCodes
from qgraph.lowering.places import offset_sums
from qgraph.onnxfile.edit import constant, take_place
from qgraph.onnxfile.lazy_array import Later
from qgraph.plan import codes as weights
from qgraph.plan.grouped import BYTES, largest_number
from qgraph.plan.plan import ActivationQuant, LayerQuant, Rounding, WeightQuant
from qgraph.plan.staircase import lookup, staircase

_MOVES_INTEGERS = frozenset(  # transparent operators that onnxruntime has uint8 kernels for
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Expand", "Resize"}
)


class QdqEmitter:
    """Makes the nodes of deployable files.

    `producers` are the layers, by name, whose results have steps per channel, with the grids of these results. With
    `whole_biases`, those of convolutions are written as integers too, not left to onnxruntime to round.
    """

    def __init__(
        self,
        graph: ir.Graph,
        producers: Mapping[str, ActivationQuant],
        *,
        packed: bool,
        whole_biases: bool = False,
    ) -> None:
        self.nodes = Nodes(graph)
        self.whole_biases = whole_biases
        self.stored = StoredCodes(self.nodes, packed=packed)
        self.producers = producers
        self.grids: dict[tuple[float, int], tuple[ir.Value, ir.Value]] = {}
        self.weights: dict[tuple[object, ...], ir.Value] = {}
        self.codes: dict[tuple[object, ...], tuple[ir.Value, ir.Value, ir.Value]] = {}
        self.products = DynamicProducts(self.nodes)
        self.integers: dict[ir.Value, ir.Value] = {}  # the codes behind each dequantized value
        self.steps: dict[ir.Value, ActivationQuant] = {}  # the grid of each value that was only dequantized
        self.offsets: dict[ir.Value, tuple[ir.Value, float]] = {}  # the value before its offset was added, the offset

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        """The weight made from its codes, which are stored once for all layers that read it on the same grid."""
        if quant.runs == "blocks":
            return blocks(self.nodes, layer, quant.weight, self._codes_of(layer, quant.weight))
        step = self._take_codes(layer) if operand is None else np.float32(1)
        factors = self._factors(layer)
        steps = () if factors is None else tuple(factors.tolist())
        home = layer.node.graph if operand is not None or layer.op == "Conv" else self.nodes.graph
        key = (layer.weight, quant.weight, operand is None, float(step), steps, home)
        if key not in self.weights:
            if operand is None:
                with self.nodes.inside(home):  # type: ignore[arg-type]
                    self.weights[key] = self._float_weight(layer, quant.weight, step)
            else:
                integers = self._integers_of(layer, quant)
                channels = {"axis": quant.weight.channel_axis} if integers[1].shape else {}
                with self.nodes.inside(home):  # type: ignore[arg-type]
                    self.weights[key] = self.nodes.op("DequantizeLinear", *integers, **channels)
        return self.weights[key]

    def _integers_of(self, layer: Layer, quant: LayerQuant) -> tuple[ir.Value, ir.Value, ir.Value]:
        """What an integer kernel reads of a weight: codes, scale and zero point, stored once for each grid."""
        factors = self._factors(layer)
        key = (layer.weight, quant.weight, () if factors is None else tuple(factors.tolist()))
        if key not in self.codes:
            grid, stem = quant.weight, str(layer.weight.name)
            if grid.unit and largest_number(grid) > BYTES:
                raise PlanError(
                    f"layer '{quant.name}' runs on bytes, and its codes times their multiples reach "
                    f"{largest_number(grid)}: at most {BYTES} expected; let it run in floats"
                )
            shifted, finer = weights.is_shifted(grid), weights.finer(grid)
            integers = self.stored.codes(stem, self._codes_of(layer, grid), grid, finer, shifted=shifted)
            scale = weights.kernel_scale(grid) / (1 if factors is None else factors)
            # without a zero point onnxruntime folds the pair to floats and requantizes them on a grid of its own
            zero = np.zeros(scale.shape, np.int8)
            if not shifted and not grid.unit:
                zero = np.broadcast_to((np.asarray(finer) * grid.zero_point).astype(np.int8), scale.shape)
            shape = scale.shape if scale.size > 1 else ()
            step, point = self.nodes.constant(f"{stem}.s", scale.reshape(shape)), self.nodes.shared(zero.reshape(shape))
            self.codes[key] = integers, step, point
        return self.codes[key]

    def dynamic(self, layer: Layer, quant: LayerQuant) -> None:
        codes, scale, point = self._integers_of(layer, quant)
        shifted = weights.is_shifted(quant.weight) or not any(quant.weight.zero_point)
        self.products.put(layer, codes, scale, None if shifted else point, quant.weight.input_scale)

    def table(self, layer: Layer, quant: LayerQuant) -> None:
        """Gather(int8 codes) -> Cast -> Mul(Gather(scales)): a byte a value in memory, and floats of few rows.

        Where another layer reads the table in floats, so does this one: it is stored once.
        """
        if (layer.weight, quant.weight, True, 1.0, (), self.nodes.graph) in self.weights:
            layer.node.replace_input_with(layer.weight_index, self.weight(layer, quant, None))
            return
        codes, scale, point = self._integers_of(layer, quant)
        rows = self.nodes.op("Gather", codes, layer.input)
        name, layer.node.name = layer.node.name, None
        rows.producer().name = name  # type: ignore[union-attr]
        real = self.nodes.op("Cast", rows, to=ir.DataType.FLOAT)
        if not weights.is_shifted(quant.weight) and any(quant.weight.zero_point):
            zeros = self.nodes.op("Cast", self._of_rows(point, layer), to=ir.DataType.FLOAT)
            real = self.nodes.op("Sub", real, zeros)
        result = self.nodes.op("Mul", real, self._of_rows(scale, layer))
        take_place(self.nodes.graph, layer.output, result, left="float")

    def _of_rows(self, numbers: ir.Value, table: Layer) -> ir.Value:
        """Those of the rows that are looked up; one for all as it is."""
        if not numbers.shape:
            return numbers
        column = self.nodes.op("Unsqueeze", numbers, self.nodes.shared(np.array([1], np.int64)))
        return self.nodes.op("Gather", column, table.input)

    @staticmethod
    def _codes_of(layer: Layer, grid: WeightQuant) -> Later:
        weight = layer.weight_array()
        return Later.of(layer.weight, lambda: weights.codes(weight, grid), np.int8)

    def _float_weight(self, layer: Layer, grid: WeightQuant, step: np.float32) -> ir.Value:
        """Codes as floats: times scale, and times the `step` of the operand that the weight carries."""
        stem, rank, codes = str(layer.weight.name), len(layer.weight_array().shape), self._codes_of(layer, grid)
        if grid.unit:
            scale, real = weights.kernel_scale(grid), self.stored.grouped(stem, codes, grid, to=ir.DataType.FLOAT)
        else:
            integers = self.stored.codes(stem, codes, grid, (1,) * len(grid.widths), shifted=False)
            scale, real = self._scale(layer, grid), self.nodes.op("Cast", integers, to=ir.DataType.FLOAT)
        shape = [-1 if i == grid.channel_axis else 1 for i in range(rank)] if scale.size > 1 else []
        if not grid.symmetric and not grid.unit:
            zero = np.asarray(grid.zero_point, np.float32).reshape(shape)
            real = self.nodes.op("Sub", real, self.nodes.constant(f"{stem}.z", zero))
        scale = (scale * step).astype(np.float32).reshape(shape)
        weight = self.nodes.op("Mul", real, self.nodes.constant(f"{stem}.s", scale))
        return self.nodes.op("Cast", weight, to=layer.weight.dtype) if layer.is_half else weight

    def _take_codes(self, layer: Layer) -> np.float32:
        """Make a layer that runs in floats read codes less zero point, and return the step for its weight to include.

        onnxruntime would otherwise quantize float weights between DequantizeLinear and QuantizeLinear itself.
        """
        grid = self.steps.get(layer.input)
        if grid is None or layer.op == "MatMul" or not layer.is_observed:
            return np.float32(1)
        codes = self.nodes.op("Cast", self.integers[layer.input], to=ir.DataType.FLOAT)
        if grid.zero_point:
            codes = self.nodes.op("Sub", codes, self.nodes.shared(np.float32(grid.zero_point)))
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
        """The bias as the kernel needs it: Gemm fuses only with int32 on the accumulator's grid, Conv takes floats."""
        floats, factors = constant(layer.bias), self._factors(layer)
        if floats is not None and factors is not None:
            return self.nodes.constant(str(layer.bias.name), floats / factors)  # type: ignore[union-attr]
        plain = attribute(layer.node, "beta", 1.0) == attribute(layer.node, "alpha", 1.0) == 1.0
        if (
            layer.op not in self._with_whole_biases
            or operand is None
            or floats is None
            or not plain
            or not _is_row(floats, layer)
        ):
            return None
        scale = weights.accumulator_scale(quant.weight, operand)
        codes = np.rint(floats.reshape(-1) / scale.astype(np.float64))
        if not weights.is_shifted(quant.weight) and any(quant.weight.zero_point):
            return None
        stem = str(layer.bias.name if layer.bias is not None else layer.name)
        per_channel = scale.size > 1
        scale = scale if per_channel else scale.reshape(())
        inputs = [
            self.nodes.constant(f"{stem}.q", codes.astype(np.int32)),
            self.nodes.constant(f"{stem}.s", scale),
            self.nodes.shared(np.zeros(scale.shape, np.int32)),
        ]
        with self.nodes.inside(layer.node.graph):  # type: ignore[arg-type]
            return self.nodes.op("DequantizeLinear", *inputs, **({"axis": 0} if per_channel else {}))

    @property
    def _with_whole_biases(self) -> tuple[str, ...]:
        return ("Gemm", "Conv") if self.whole_biases else ("Gemm",)

    def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        if quant.rounding is None:
            offset = np.float32(quant.offset)
            shifted = self.nodes.op("Sub", value, self.nodes.shared(offset)) if quant.offset else value
            integers = self._codes(shifted, *self._grid(quant), *self._highest(value, quant))
            if quant.channel_scale or _cut_by_codes(value, quant):
                self._let_codes_clip(value)
        else:
            integers = self._rounded(value, quant, quant.rounding)
        return self._dequantized(integers, value, quant)

    def _codes(self, value: ir.Value, scale: ir.Value, zero_point: ir.Value, *highest: int) -> ir.Value:
        """The codes of `value`, at most `highest`: one number, or one per channel along axis 1."""
        integers = self.nodes.op("QuantizeLinear", value, scale, zero_point)
        if min(highest) >= 255:
            return integers
        shape = [1, -1, *[1] * (len(value.shape or ()) - 2)] if len(highest) > 1 else []
        return self.nodes.op("Min", integers, self.nodes.shared(np.asarray(highest, np.uint8).reshape(shape)))

    def _rounded(self, value: ir.Value, quant: ActivationQuant, rounding: Rounding) -> ir.Value:
        """The codes by Q-Rater's rounding: looked up by an 8-bit code, or with one Where per threshold."""
        k = rounding.subdivision
        if k:
            scale = self.nodes.constant(f"{value.name}/fine", np.float32(quant.scale) / np.float32(k))
            fine = self._codes(value, scale, self.nodes.shared(np.uint8(quant.zero_point * k)), quant.qmax * k)
            table = self.nodes.constant(f"{value.name}/codes", lookup(quant))
            return self.nodes.op("Gather", table, self.nodes.op("Cast", fine, to=ir.DataType.INT32))
        thresholds, codes = staircase(quant)
        levels = [self.nodes.shared(np.uint8(code)) for code in codes]
        result = levels[0]
        for threshold, level in zip(thresholds, levels[1:], strict=True):
            reached = self.nodes.op("GreaterOrEqual", value, self.nodes.constant(f"{value.name}/threshold", threshold))
            result = self.nodes.op("Where", reached, level, result)
        return result

    def fold_offset(self, layer: Layer, quant: LayerQuant) -> tuple[ir.Value, NDArray[np.float64]] | None:
        if layer.input not in self.offsets or pads(layer):
            return None
        plain, offset = self.offsets[layer.input]
        return plain, offset_sums(layer, quant, offset)

    def _highest(self, value: ir.Value, quant: ActivationQuant) -> tuple[int, ...]:
        """The highest code of every channel, or one for all.

        If a Clip wrote a tensor that has steps per channel, it is the code of the Clip's bound.
        """
        if not quant.channel_scale:
            return quant.channel_qmax
        highest, bound = np.asarray(quant.channel_qmax), upper_bound(value)
        if bound is not None:
            step = quant.scale * np.asarray(quant.channel_scale)
            highest = np.minimum(highest, np.rint(np.float32(bound) / step.astype(np.float32)).astype(np.int64))
        return tuple(int(code) for code in highest)

    def _let_codes_clip(self, value: ir.Value) -> None:
        """Replace a Clip by a ReLU where the codes already end at its bound, which differs between channels."""
        clip = value.producer()
        if clip is not None and upper_bound(value) is not None:
            clip.op_type = "Relu"
            clip.resize_inputs(1)

    def carry(self, node: ir.Node, quantized: ir.Value, quant: ActivationQuant) -> ir.Value | None:
        """Move the codes instead of the floats: one byte per value, and no rounding between."""
        if node.op_type not in _MOVES_INTEGERS or len([v for v in node.outputs if v.uses()]) > 1 or _names_axes(node):
            return None
        if quantized not in self.integers:  # an operator without a uint8 kernel lies between
            return None
        if node.op_type == "Pad" and quant.offset:  # then no code stands for zero
            return None
        node.replace_input_with(0, self.integers[quantized])
        if node.op_type == "Pad":
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, self.nodes.shared(np.uint8(quant.zero_point)))
        moved = node.outputs[0]
        floats = moved.type
        moved.type = ir.TensorType(ir.DataType.UINT8)
        result = self._dequantized(moved, moved, quant)
        result.type = floats
        return result

    def _dequantized(self, integers: ir.Value, like: ir.Value, quant: ActivationQuant) -> ir.Value:
        result = self.nodes.op("DequantizeLinear", integers, *self._grid(quant))
        if quant.offset:
            plain, result = result, self.nodes.op("Add", result, self.nodes.shared(np.float32(quant.offset)))
            self.offsets[result] = plain, quant.offset
            plain.shape, plain.type = like.shape, like.type
        result.shape, result.type = like.shape, like.type
        self.integers[result] = integers
        if not quant.offset:
            self.steps[result] = quant
        return result

    def _grid(self, quant: ActivationQuant) -> tuple[ir.Value, ir.Value]:
        key = (quant.scale, quant.zero_point)
        if key not in self.grids:
            scale = self.nodes.constant(f"s{len(self.grids)}", np.asarray(quant.scale, np.float32))
            self.grids[key] = scale, self.nodes.shared(np.uint8(quant.zero_point))
        return self.grids[key]


def _cut_by_codes(value: ir.Value, quant: ActivationQuant) -> bool:
    """Whether the largest code is below the upper bound of the Clip that wrote the tensor, so that the Clip is idle.

    onnxruntime merges a Clip into an integer convolution only if its bound is the end of the codes' type.
    """
    clip, bound = value.producer(), upper_bound(value)
    low = constant(clip.inputs[1]) if clip is not None and bound is not None else None
    plain = quant.role == "tensor" and quant.bits < 8 and not quant.zero_point and not quant.offset
    from_zero = low is not None and not low.any()
    return plain and from_zero and bound is not None and round(bound / quant.scale) >= quant.qmax


def _is_row(bias: NDArray[Any], layer: Layer) -> bool:
    """Whether the bias has one value per output channel; Gemm also takes matrices, columns and scalars."""
    return bool(bias.shape in ((channels := layer.weight_array().shape[layer.output_axis],), (1, channels)))


def _names_axes(node: ir.Node) -> bool:
    """Whether a Pad or Resize names its axes, which onnxruntime's layout optimizer gets wrong."""
    if node.op_type == "Pad":
        return len(node.inputs) > 3 and node.inputs[3] is not None
    kept = attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch"
    return node.op_type == "Resize" and ("axes" in node.attributes or kept)
