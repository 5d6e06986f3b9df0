"""How many bits the layers of a quantized file use, read from the file, whichever tool wrote it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.fused import is_dynamic_product, scaled, weight_codes
from qgraph.graph.layers import LAYER_OPS, attribute
from qgraph.graph.tensors import TRANSPARENT_OPS
from qgraph.graph.walk import descendants
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import evaluate_constants

Bits = tuple[int | None, int | None]
_TELLING = 8  # codes of a channel from which on their greatest common step is its own


def bits_in_file(model: Model) -> dict[str, Bits]:
    """The bits of every layer's weight and operand, None for floating point; by node name and by name of the result.

    The bits of a weight are those that span the codes of an average channel in units of its greatest common step:
    4-bit codes stored as int8 count as 4 bits, also if they are multiples of 8, and wherever the zero point is; where
    channels share bits, 3, 4 and 5 are 4 on average, as in the plan. Channels of zeros do not count. The bits of an
    operand are those of the largest code that a Min behind its QuantizeLinear passes on, or those of its type.
    """
    nodes = [n for n in model.graph if n.op_type in LAYER_OPS and n.domain == "" and len(n.inputs) > 1]
    varying = descendants(v for v in model.graph.inputs if v.const_value is None)
    products = [n for n in model.graph if is_dynamic_product(n, varying)]
    sources = [(weight_codes(n.inputs[1]), _operand_bits(n.inputs[0])) for n in nodes]
    sources += [(_moved_from(n.inputs[1]), 8) for n in products]
    nodes += products
    wanted = list(dict.fromkeys(codes for codes, _ in sources if codes is not None))
    arrays = dict(zip(wanted, evaluate_constants(model.ir_model, wanted) if wanted else [], strict=True))
    found: dict[str, Bits] = {}
    for node, (codes, operand) in zip(nodes, sources, strict=True):
        bits = (None if codes is None else _span(arrays[codes], _channel_axis(codes)), operand)
        for name in (*(value.name for value in scaled(node.outputs[0])), node.name):
            if name:
                found[name] = bits
    return found


def _moved_from(value: ir.Value | None) -> ir.Value | None:
    """The codes that an integer product reads, before they were transposed."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Transpose" else value


def _operand_bits(value: ir.Value | None) -> int | None:
    dequantized = False
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Min" and dequantized:
            top = constant(node.inputs[1])
            return None if top is None or top.size != 1 else int(top.item()).bit_length()
        if node.op_type == "QuantizeLinear":
            zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            return 8 if zero is None else 8 * zero.dtype.itemsize
        dequantized = dequantized or node.op_type == "DequantizeLinear"
        value = node.inputs[0] if node.op_type in TRANSPARENT_OPS | {"DequantizeLinear"} else None
    return None


def _channel_axis(codes: ir.Value) -> int | None:
    """The axis along which the DequantizeLinear or product that reads these codes has one scale per channel."""
    for use in codes.uses():
        if use.node.op_type in ("MatMulInteger", "Transpose"):
            return 0 if use.node.op_type == "Transpose" else -1
        if use.node.op_type == "DequantizeLinear" and use.idx == 0:
            scale = constant(use.node.inputs[1])
            return int(attribute(use.node, "axis", 1)) if scale is not None and scale.ndim == 1 else None
    return None


def _span(codes: NDArray[np.generic] | None, axis: int | None) -> int | None:
    if codes is None or codes.dtype.kind not in "iu" or not codes.size:
        return None
    wide = codes.astype(np.int64)
    rows = wide.reshape(1, -1) if axis is None else np.moveaxis(wide, axis, 0).reshape(wide.shape[axis], -1)
    above = rows - rows.min(axis=1, keepdims=True)
    steps = np.gcd.reduce(above, axis=1 if rows.shape[1] >= _TELLING else None)
    spans = above.max(axis=1) // np.maximum(steps, 1)
    bits = [math.ceil(math.log2(int(span) + 1)) for span in spans if span]
    return max(1, round(sum(bits) / len(bits))) if bits else 1
