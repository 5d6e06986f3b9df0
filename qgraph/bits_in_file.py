"""How many bits the layers of a quantized file use, read from the file itself, whichever tool wrote it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.folding import constant
from qgraph.graph import LAYER_OPS, TRANSPARENT_OPS
from qgraph.model import Model
from qgraph.runtime import evaluate_constants

Bits = tuple[int | None, int | None]
_SCALING_OPS = frozenset({"Mul", "Sub", "Add", "Reshape", "Transpose"})  # between codes and a float weight


def bits_in_file(model: Model) -> dict[str, Bits]:
    """Bits of weight and of operand per layer, None for floating point; by node name, and by name of the result.

    Weights count the bits that span their codes in units of their common step, so that 4-bit codes stored as int8 are
    4 bits, multiples of 8 as well; operands count those of the largest code that a Min behind their QuantizeLinear lets
    through, or of the type.
    """
    nodes = [n for n in model.graph if n.op_type in LAYER_OPS and n.domain == "" and len(n.inputs) > 1]
    sources = [(_weight_codes(n.inputs[1]), _operand_bits(n.inputs[0])) for n in nodes]
    wanted = list(dict.fromkeys(codes for codes, _ in sources if codes is not None))
    arrays = dict(zip(wanted, evaluate_constants(model.ir_model, wanted) if wanted else [], strict=True))
    found: dict[str, Bits] = {}
    for node, (codes, operand) in zip(nodes, sources, strict=True):
        bits = (None if codes is None else _span(arrays[codes]), operand)
        for name in (node.outputs[0].name, node.name):
            if name:
                found[name] = bits
    return found


def _weight_codes(value: ir.Value | None) -> ir.Value | None:
    """The integers behind a weight: what DequantizeLinear or a Cast to float reads."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("DequantizeLinear", "Cast"):
            return node.inputs[0]
        value = node.inputs[0] if node.op_type in _SCALING_OPS else None
    return None


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


def _span(codes: NDArray[np.generic] | None) -> int | None:
    if codes is None or codes.dtype.kind not in "iu" or not codes.size:
        return None
    above = codes.astype(np.int64).ravel() - int(codes.min())
    step = max(int(np.gcd.reduce(above)), 1)
    return max(1, math.ceil(math.log2(int(above.max()) // step + 1)))
