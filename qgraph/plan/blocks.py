"""Which layers can multiply floats with packed blocks of codes, as onnxruntime's MatMulNBits does.

That kernel reads the codes as they are stored, a few bits a weight. For one row at a time, as in a decoder that writes
word after word, memory is what takes time: it is several times faster than floats, but slower from some 16 rows on.
"""

from __future__ import annotations

from qgraph.graph.layers import Layer, attribute
from qgraph.plan.plan import WeightQuant

BLOCK_BITS = (4, 8)  # those of codes that the kernel reads
BLOCK_OPSET = 21  # the first with DequantizeLinear of blocks, and with 4-bit numbers
LEAST_BLOCK = 16  # inputs that share a step in the kernel, at least; a power of 2
BLOCK = 32


def why_no_blocks(layer: Layer) -> str:
    """Why a layer cannot multiply with blocks of codes; empty if it can."""
    if layer.weight_only or layer.op not in ("MatMul", "Gemm"):
        return f"the kernel is for MatMul and Gemm of the main graph in float32, not for {layer.op}"
    if layer.weight_index == 0 or len(layer.weight.shape or ()) != 2:
        return "its weight is not a matrix on the right"
    if not layer.owns_weight:
        return "other layers read the same weight"
    if layer.op == "Gemm" and (attribute(layer.node, "transA", 0) or attribute(layer.node, "alpha", 1.0) != 1.0):
        return "it scales or transposes its operand"
    return ""


def why_not_on_grid(grid: WeightQuant) -> str:
    """Why the kernel does not read codes of this grid; empty if it does."""
    group = grid.granularity.group or 0
    if not grid.unit or group < LEAST_BLOCK or group & (group - 1):
        return f"its inputs share steps {grid.granularity}: groups of {LEAST_BLOCK} or a larger power of 2 are needed"
    if grid.bits not in BLOCK_BITS:
        return f"its weights have {grid.bits} bits, and the kernel reads those of 4 and 8"
    return ""
