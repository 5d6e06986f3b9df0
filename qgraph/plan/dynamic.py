"""Which layers can quantize their operand dynamically, by its values in each run."""

from __future__ import annotations

from collections.abc import Sequence

from qgraph.graph.layers import RECURRENT_OPS, TABLE_OP, Layer

DYNAMIC_BITS = 8  # bits of an operand quantized by DynamicQuantizeLinear


def why_not_dynamic(layer: Layer) -> str:
    """Why the operand of a layer cannot be quantized dynamically; empty if it can."""
    if layer.op in (*RECURRENT_OPS, TABLE_OP):
        return "of recurrent layers and of tables the weight alone is quantized"
    if layer.is_half:
        return "it computes in 16-bit floats, which DynamicQuantizeLinear does not take"
    if layer.op not in ("MatMul", "Gemm"):
        return f"onnxruntime's {layer.op} on such integers is slower than in floats"
    if layer.weight_index == 0:
        return "its weight is the left factor, which no kernel takes in int8 beside bytes on the right"
    return ""


def mostly_products(layers: Sequence[Layer]) -> bool:
    """Whether more than half of the layers can be dynamic, as in transformers."""
    return 2 * sum(not why_not_dynamic(layer) for layer in layers if not layer.weight_only) > sum(
        not layer.weight_only for layer in layers
    )
