"""Products with a dynamically quantized operand, in operators that onnxruntime fuses into one kernel:

    x_q, s_x, z_x = DynamicQuantizeLinear(x)        y = float(MatMulInteger(x_q, w_q, z_x)) (s_x s_w) + bias

It becomes DynamicQuantizeMatMul where one layer reads x, MatMulIntegerToFloat where several share its codes.

A convolution is such a product over the rows that its windows cover (`qgraph.lowering.unfold`): onnxruntime's own,
ConvInteger, is slower than in floats.

Where the rows of the weight carry factors, x is divided by them first. Channels with factor 0 are multiplied apart, in
floats: Gather(x) W[channels] is added to y.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer, attribute
from qgraph.lowering.nodes import Nodes
from qgraph.lowering.unfold import Window, channels_first, matrix, rows
from qgraph.onnxfile.edit import append_dynamic, constant, take_place


def inverse(factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / factors, 0 where there is none."""
    return np.divide(1.0, factors, out=np.zeros_like(factors), where=factors > 0)


def _after_bias(result: ir.Value) -> ir.Value:
    """The result of a product, or that with its bias where one Add alone reads it: onnxruntime fuses such a pair."""
    uses = list(result.uses())
    if len(uses) != 1 or result.is_graph_output() or uses[0].node.op_type != "Add" or uses[0].node.domain:
        return result
    node = uses[0].node
    bias = constant(node.inputs[1 - uses[0].idx])
    return node.outputs[0] if bias is not None and bias.ndim == 1 and node.graph is result.graph else result


def _window(layer: Layer) -> Window | None:
    """How a convolution moves over its operand; None for products."""
    if layer.op != "Conv":
        return None
    given = {name: found.value for name, found in layer.node.attributes.items()}
    return Window.of(layer.weight_array().shape, given)


class DynamicProducts:
    """Puts such products into a graph; layers that read the same tensor share its codes."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.quantizers: dict[tuple[ir.Value, tuple[float, ...]], ir.Node] = {}
        self.rows: dict[tuple[ir.Value, Window], ir.Value] = {}
        self.apart: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}

    def put(
        self,
        layer: Layer,
        codes: ir.Value,
        scale: ir.Value,
        zero_point: ir.Value | None,
        factors: tuple[float, ...] = (),
    ) -> None:
        """Let a MatMul, Gemm or Conv be such a product with the codes of its weight, under the layer's name."""
        operand, step, zero = self._operand(layer, factors)
        with self.nodes.inside(layer.node.graph):  # type: ignore[arg-type]
            window = _window(layer)
            if window is not None:
                operand = self._rows(layer, operand, zero, window)
                codes = matrix(self.nodes, codes, window, layer.weight_array().shape[0])
            if layer.op == "Gemm" and attribute(layer.node, "transB", 0):
                codes = self.nodes.op("Transpose", codes, perm=[1, 0])
            zeros = [zero] if zero_point is None else [zero, zero_point]
            sums = self.nodes.op("MatMulInteger", operand, codes, *zeros)
            real = self.nodes.op("Cast", sums, to=ir.DataType.FLOAT)
            alpha = float(attribute(layer.node, "alpha", 1.0)) if layer.op == "Gemm" else 1.0
            result = self.nodes.op("Mul", real, self.nodes.op("Mul", step, self._times(scale, alpha)))
            if layer.bias is not None and layer.bias_factor:
                result = self.nodes.op("Add", result, self._times(layer.bias, layer.bias_factor))
            apart = self._products_apart(layer, factors, alpha) if 0 in factors else None
            name, layer.node.name = layer.node.name, None
            sums.producer().name = name  # type: ignore[union-attr]
            if window is not None:
                result = channels_first(self.nodes, result, window)
            take_place(self.nodes.graph, layer.output, result, left="float")
            if apart is not None:
                self._add(_after_bias(result), apart)

    def _add(self, value: ir.Value, more: ir.Value) -> None:
        """Let all that read `value` read it with `more` added."""
        total = self.nodes.op("Add", value, more)
        take_place(self.nodes.graph, value, total, left="together")
        total.producer().replace_input_with(0, value)  # type: ignore[union-attr]

    def _operand(self, layer: Layer, factors: tuple[float, ...]) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Codes, scale and zero point of what the layer multiplies with its weight."""
        value, key = layer.input, (layer.input, factors)
        if key not in self.quantizers:
            if factors:
                shape = (-1, 1) if layer.input_axis == 0 else (-1,)
                amounts = inverse(np.asarray(factors, np.float32)).reshape(shape)
                value = self.nodes.op("Mul", value, self.nodes.constant(f"{value.name}/factors", amounts))
                value.shape, value.type = layer.input.shape, layer.input.type
            self.quantizers[key] = append_dynamic(self.nodes.graph, value)
        codes, scale, zero = self.quantizers[key].outputs
        if layer.op == "Gemm" and attribute(layer.node, "transA", 0):
            codes = self.nodes.op("Transpose", codes, perm=[1, 0])
        return codes, scale, zero

    def _rows(self, layer: Layer, codes: ir.Value, zero: ir.Value, window: Window) -> ir.Value:
        """What a convolution's windows cover, as rows, once for all that move alike over one tensor."""
        key = layer.input, window
        if key not in self.rows:
            self.rows[key] = rows(self.nodes, codes, zero, window)
        return self.rows[key]

    def _products_apart(self, layer: Layer, factors: tuple[float, ...], alpha: float) -> ir.Value:
        """What the channels with factor 0 add to the result."""
        channels = np.flatnonzero(np.asarray(factors) == 0)
        key = layer.input, tuple(channels.tolist())
        if key not in self.apart:
            axis = layer.input_axis
            found = self.nodes.op("Gather", layer.input, self.nodes.shared(channels), axis=axis)
            self.apart[key] = found if axis else self.nodes.op("Transpose", found, perm=[1, 0])
        rows = np.take(layer.weight_array(), channels, axis=1 - layer.output_axis)
        rows = np.float32(alpha) * (rows.T if layer.output_axis == 0 else rows)
        return self.nodes.op("MatMul", self.apart[key], self.nodes.constant(f"{layer.weight.name}.apart", rows))

    def _times(self, value: ir.Value, factor: float) -> ir.Value:
        return value if factor == 1 else self.nodes.op("Mul", value, self.nodes.shared(np.float32(factor)))
