"""Layers on integers as files have them: where codes, scales and zero points stand, and in which order kernels add.

A file may say it in operators on codes (QLinearConv), or in operators on floats behind DequantizeLinear, which
onnxruntime merges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.fused import dequantizer
from qgraph.graph.layers import attribute
from qgraph.onnxfile.edit import constant

# where the operand and the weight with their scales and zero points, and the bias, stand among the inputs
_PLACES = {
    "QLinearConv": (0, 1, 2, 3, 4, 5, 8),
    "QLinearMatMul": (0, 1, 2, 3, 4, 5, None),
    "QGemm": (0, 1, 2, 3, 4, 5, 6),
    "ConvInteger": (0, None, 2, 1, None, 3, None),
    "MatMulInteger": (0, None, 2, 1, None, 3, None),
}
LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger"})
_MOVE_CODES = frozenset(
    {"Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand", "Tile", "Gather"}
    | {"MaxPool", "GlobalMaxPool", "ReduceMax", "DepthToSpace", "SpaceToDepth"}
)
_RESHAPE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A layer in integers: its node, and the values of its codes, scales and zero points."""

    node: ir.Node
    operand: ir.Value
    scale: ir.Value | None
    zero: ir.Value | None
    weight: ir.Value
    weight_scale: ir.Value | None
    weight_zero: ir.Value | None
    bias: ir.Value | None

    def values(self) -> Iterator[ir.Value]:
        for value in (self.scale, self.zero, self.weight, self.weight_scale, self.weight_zero, self.bias):
            if value is not None:
                yield value


def product_of(node: ir.Node) -> Product | None:
    """The node as a product of codes; None if it computes floats."""
    if places := _PLACES.get(node.op_type):
        found = [None if p is None or p >= len(node.inputs) else node.inputs[p] for p in places]
        operand, scale, zero, weight, weight_scale, weight_zero, bias = found
    elif node.op_type in LAYERS and node.domain == "":
        sides = [dequantizer(value) for value in node.inputs[:2]]
        if None in sides:
            return None
        (operand, scale, zero), (weight, weight_scale, weight_zero) = (_three(side) for side in sides if side)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
    else:
        return None
    if operand is None or weight is None:
        return None
    return Product(
        node=node,
        operand=operand,
        scale=scale,
        zero=zero,
        weight=weight,
        weight_scale=weight_scale,
        weight_zero=weight_zero,
        bias=bias,
    )


def _three(node: ir.Node) -> tuple[ir.Value | None, ...]:
    return tuple(node.inputs[i] if i < len(node.inputs) else None for i in range(3))


def as_read(product: Product, codes: NDArray[Any]) -> NDArray[Any] | None:
    """The codes of the weight in the shape that the layer reads; None if it is not known.

    onnxruntime moves codes, where a file moves what they stand for: DequantizeLinear, Transpose, MatMul.
    """
    if product.node.op_type not in LAYERS:
        return codes
    moves, value = [], product.node.inputs[1]
    while value is not None and (node := value.producer()) is not None and node.op_type != "DequantizeLinear":
        moves.append(node)
        value = node.inputs[0]
    for node in reversed(moves):
        shape = node.outputs[0].shape
        if node.op_type == "Transpose":
            codes = codes.transpose(attribute(node, "perm", range(codes.ndim)[::-1]))
        elif node.op_type in _RESHAPE and shape is not None and shape.is_static():
            codes = codes.reshape(shape.numpy())
        elif node.op_type != "Identity":
            return None
    return codes


def length_of(product: Product) -> int:
    """How many products each sum of a product of two computed tensors has; 0 if the shapes do not tell."""
    if product.node.op_type == "MatMul":  # the codes of a factor may have another shape, before a Transpose
        factors = product.node.inputs[:2]
    elif product.node.op_type in ("QLinearMatMul", "MatMulInteger"):
        factors = (product.operand, product.weight)
    else:
        return 0
    for value, axis in zip(factors, (-1, -2), strict=True):
        shape = None if value is None else value.shape
        if shape is not None and len(shape) > 1 and isinstance(size := shape[axis], int):
            return size
    return 0


def code_range(codes: ir.Value) -> tuple[int, int]:
    """The codes that a tensor can hold: those of its type, at most what a Min on the way lets through."""
    low, high = (-128, 127) if is_signed(codes) else (0, 255)
    return low, _highest(codes, high)


def _highest(codes: ir.Value, most: int) -> int:
    """The highest code of a tensor; `most` if the graph does not tell."""
    node = codes.producer()
    if node is None or not node.inputs or node.domain != "":
        return most
    read = [v for v in node.inputs if v is not None]
    if node.op_type == "Min":
        tops = [constant(v) for v in read]
        return min(_highest(v, most) if top is None else int(top.max()) for v, top in zip(read, tops, strict=True))
    if node.op_type == "Concat":
        return max(_highest(v, most) for v in read)
    if node.op_type == "Pad":
        fill = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1)
        return most if fill is None else max(_highest(read[0], most), int(fill.max()))
    return _highest(read[0], most) if node.op_type in _MOVE_CODES else most


def is_signed(codes: ir.Value) -> bool:
    """Whether codes are int8: by their type, or by the zero point they were made with."""
    if codes.dtype is not None:
        return codes.dtype == ir.DataType.INT8
    node = codes.producer()
    zero = constant(node.inputs[2]) if node is not None and len(node.inputs) > 2 else None
    return zero is not None and zero.dtype == np.int8


def kernel_rows(node: ir.Node, codes: NDArray[Any]) -> NDArray[Any]:
    """The weight as outputs x products, in the order in which kernels add them (see `Layer.kernel_rows`)."""
    if node.op_type in _CONVOLUTIONS:
        return np.moveaxis(codes, 1, -1).reshape(len(codes), -1)
    transposed = node.op_type in ("Gemm", "QGemm") and attribute(node, "transB", 0)
    inner = codes if transposed or codes.ndim < 2 else np.swapaxes(codes, -1, -2)
    return inner.reshape(-1, inner.shape[-1])


def adds_pairs(node: ir.Node, codes: NDArray[Any], zero: NDArray[np.int64]) -> bool:
    """Whether the kernel adds products in pairs; a depthwise convolution without zero points has one of its own."""
    if node.op_type not in _CONVOLUTIONS or zero.any():
        return True
    return not (codes.shape[1] == 1 and len(codes) == int(attribute(node, "group", 1)))
