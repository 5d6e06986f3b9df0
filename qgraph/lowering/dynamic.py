"""Products with a dynamically quantized operand, in operators that onnxruntime fuses into one kernel:

    x_q, s_x, z_x = DynamicQuantizeLinear(x)        y = float(MatMulInteger(x_q, w_q, z_x)) (s_x s_w) + bias

The kernel is DynamicQuantizeMatMul if one layer reads x, or MatMulIntegerToFloat if several share its codes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qgraph.graph.layers import Layer, attribute
from qgraph.lowering.nodes import Nodes
from qgraph.onnxfile.edit import append_dynamic, take_place


class DynamicProducts:
    """Puts such products into a graph; layers that read the same tensor share its codes."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.quantizers: dict[ir.Value, ir.Node] = {}

    def put(self, layer: Layer, codes: ir.Value, scale: ir.Value, zero_point: ir.Value | None) -> None:
        """Replace a MatMul or Gemm by such a product with the codes of its weight, under the layer's name."""
        operand, step, zero = self._operand(layer)
        if layer.op == "Gemm" and attribute(layer.node, "transB", 0):
            codes = self.nodes.op("Transpose", codes, perm=[1, 0])
        zeros = [zero] if zero_point is None else [zero, zero_point]
        sums = self.nodes.op("MatMulInteger", operand, codes, *zeros)
        real = self.nodes.op("Cast", sums, to=ir.DataType.FLOAT)
        alpha = float(attribute(layer.node, "alpha", 1.0)) if layer.op == "Gemm" else 1.0
        result = self.nodes.op("Mul", real, self.nodes.op("Mul", step, self._times(scale, alpha)))
        if layer.bias is not None and layer.bias_factor:
            result = self.nodes.op("Add", result, self._times(layer.bias, layer.bias_factor))
        name, layer.node.name = layer.node.name, None
        sums.producer().name = name  # type: ignore[union-attr]
        take_place(self.nodes.graph, layer.output, result, left="float")

    def _operand(self, layer: Layer) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The codes, scale and zero point of the layer's operand."""
        if layer.input not in self.quantizers:
            self.quantizers[layer.input] = append_dynamic(self.nodes.graph, layer.input)
        codes, scale, zero = self.quantizers[layer.input].outputs
        if layer.op == "Gemm" and attribute(layer.node, "transA", 0):
            codes = self.nodes.op("Transpose", codes, perm=[1, 0])
        return codes, scale, zero

    def _times(self, value: ir.Value, factor: float) -> ir.Value:
        return value if factor == 1 else self.nodes.op("Mul", value, self.nodes.shared(np.float32(factor)))
