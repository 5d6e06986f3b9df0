"""plan -> a float graph of plain operators that computes the same numbers (`--format float`).

Weights become the float values of their codes. An activation grid becomes
scale * (clip(round(x / scale) + zero_point, 0, qmax) - zero_point) in Div, Round, Clip and Mul, with the grid's offset
subtracted before and added after. A rounding scheme counts the thresholds reached, or is a Gather by the k-ths of a
step on which it is defined.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import PlanError
from qgraph.graph.layers import Layer
from qgraph.graph.tensors import is_non_negative
from qgraph.lowering.dynamic import inverse
from qgraph.lowering.places import put_in_place
from qgraph.onnxfile.edit import add_initializer, append_dynamic, append_node
from qgraph.onnxfile.lazy_array import Later
from qgraph.onnxfile.model import Model
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, Rounding
from qgraph.plan.staircase import lookup, staircase

_ADDS_BYTES = 14  # the first opset whose Add takes uint8, the cheapest type to count in


def simulate(model: Model, plan: QuantPlan) -> ir.Model:
    """The fake-quantized model: float operators, with the interface of `model`."""
    return put_in_place(model, plan, FloatEmitter)


def simulate_activations(model: Model, plan: QuantPlan) -> ir.Model:
    """The same with the activation grids alone: the layers of the plan read them, and keep their float weights."""
    return put_in_place(model, plan, _FloatWeights)


class FloatEmitter:
    """Makes grids of plain float operators."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.scalars: dict[str, ir.Value] = {}
        self.at_hand: dict[tuple[ir.Value, tuple[float, ...]], ir.Value] = {}

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        weight = layer.weight_array()
        array = Later.of(layer.weight, lambda: weights.quantized(weight, quant.weight), np.float32)
        stored = add_initializer(self.graph, f"{layer.weight.name}/quantized", array)
        return (
            append_node(self.graph, "Cast", [stored], {"to": layer.weight.dtype}).outputs[0]
            if layer.is_half
            else stored
        )

    def table(self, layer: Layer, quant: LayerQuant) -> None:
        layer.node.replace_input_with(layer.weight_index, self.weight(layer, quant, None))

    def dynamic(self, layer: Layer, quant: LayerQuant) -> None:
        layer.node.replace_input_with(1 - layer.weight_index, self.operand_at_hand(layer, quant))
        layer.node.replace_input_with(layer.weight_index, self.weight(layer, quant, None))

    def operand_at_hand(self, layer: Layer, quant: LayerQuant) -> ir.Value:
        """The layer's operand on the 8-bit grid from its smallest to its largest value, as every run finds it.

        It is divided by the factors of its channels, and multiplied again; channels without a factor stay as they are.
        """
        value, factors = layer.input, np.asarray(quant.weight.input_scale, np.float32)
        key = value, quant.weight.input_scale
        if key not in self.at_hand:
            evened = self._times(value, inverse(factors), layer)
            result = self.op("DequantizeLinear", *append_dynamic(self.graph, evened).outputs)
            result = self._times(result, factors, layer)
            if (factors == 0).any():
                result = self.op("Add", result, self._times(value, (factors == 0).astype(np.float32), layer))
            result.shape, result.type = value.shape, value.type
            self.at_hand[key] = result
        return self.at_hand[key]

    def _times(self, value: ir.Value, factors: NDArray[np.float32], layer: Layer) -> ir.Value:
        """`value` with every channel that the layer sums over times its factor; itself where there are none."""
        if not factors.size:
            return value
        shape = (-1, 1) if layer.input_axis == 0 else (-1,)
        result = self.op("Mul", value, add_initializer(self.graph, "factors", factors.reshape(shape)))
        result.shape, result.type = value.shape, value.type
        return result

    def bias(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> None:
        return None  # biases stay in floating point

    def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        result = self._plain(value, quant) if quant.rounding is None else self._rounded(value, quant, quant.rounding)
        result.shape, result.type = value.shape, value.type
        return result

    def _plain(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        # clip before shifting: round(x / scale) lies in -zero_point .. qmax - zero_point
        rank = len(value.shape) if value.shape is not None else 0
        scale = self._per_channel([quant.scale * factor for factor in quant.channel_scale or (1.0,)], rank)
        low, high = self._scalar(-quant.zero_point), self._scalar(quant.qmax - quant.zero_point)
        shifted = self.op("Sub", value, self._scalar(quant.offset)) if quant.offset else value
        steps = self.op("Div", shifted, scale)
        codes = self.op("Clip", self.op("Round", steps), low, high)
        if quant.channel_bits:
            limits = [float(qmax - quant.zero_point) for qmax in quant.channel_qmax]
            codes = self.op("Min", codes, self._per_channel(limits, rank))
        result = self.op("Mul", codes, scale)
        return self.op("Add", result, self._scalar(quant.offset)) if quant.offset else result

    def _rounded(self, value: ir.Value, quant: ActivationQuant, rounding: Rounding) -> ir.Value:
        scale, k = np.float32(quant.scale), rounding.subdivision
        if k:
            reals = (lookup(quant).astype(np.float32) - quant.zero_point) * scale
            fine = self.op("Round", self.op("Div", value, self._scalar(scale / np.float32(k))))
            low, high = self._scalar(-quant.zero_point * k), self._scalar((quant.qmax - quant.zero_point) * k)
            index = self.op("Add", self.op("Clip", fine, low, high), self._scalar(quant.zero_point * k))
            table = add_initializer(self.graph, f"{value.name}/levels", reals)
            return self.op("Gather", table, self.op("Cast", index, to=ir.DataType.INT32))
        thresholds, codes = staircase(quant)
        if is_non_negative(value):  # codes below zero are never needed
            below = int((thresholds <= 0).sum())
            thresholds, codes = thresholds[below:], codes[below:]
        base = int(codes[0]) - quant.zero_point
        codes_type = ir.DataType.UINT8 if self.graph.opset_imports.get("", 1) >= _ADDS_BYTES else ir.DataType.INT32
        risers: list[ir.Value] = []
        for threshold, height in zip(thresholds, np.diff(codes), strict=True):
            reached = self.op("GreaterOrEqual", value, self._scalar(threshold))
            risers += [self.op("Cast", reached, to=codes_type)] * int(height)
        count = functools.reduce(lambda total, riser: self.op("Add", total, riser), risers)
        steps = self.op("Cast", count, to=ir.DataType.FLOAT)
        return self.op("Mul", self.op("Add", steps, self._scalar(base)) if base else steps, self._scalar(scale))

    def fold_offset(self, layer: Layer, quant: LayerQuant) -> None:
        return None  # the operand includes the offset already

    def carry(self, node: ir.Node, quantized: ir.Value, quant: ActivationQuant) -> None:
        return None  # moved floats stay on their grid

    def op(self, op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return append_node(self.graph, op_type, inputs, attributes).outputs[0]

    def _per_channel(self, numbers: Sequence[float], rank: int) -> ir.Value:
        """The numbers shaped to broadcast: one for all, or one per channel along axis 1 of a tensor of this rank."""
        if len(numbers) == 1:
            return self._scalar(numbers[0])
        if rank < 2:
            raise PlanError("a grid per channel needs a tensor of known rank, with channels along axis 1")
        array = np.asarray(numbers, np.float32).reshape(1, -1, *[1] * (rank - 2))
        return add_initializer(self.graph, "per_channel", array)

    def _scalar(self, number: float | np.floating) -> ir.Value:
        name = f"f32:{np.float32(number)!s}"
        if name not in self.scalars:
            self.scalars[name] = add_initializer(self.graph, name, np.float32(number))
        return self.scalars[name]


class _FloatWeights(FloatEmitter):
    """Makes grids of activations, and leaves weights as they are."""

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        return layer.weight
