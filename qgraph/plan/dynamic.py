"""Which layers can quantize their operand dynamically, by its values in each run."""

from __future__ import annotations

from collections.abc import Sequence

from qgraph.graph.layers import RECURRENT_OPS, TABLE_OP, Layer, attribute

DYNAMIC_BITS = 8  # bits of an operand quantized by DynamicQuantizeLinear
_PRODUCTS = ("MatMul", "Gemm")


def why_not_dynamic(layer: Layer) -> str:
    """Why the operand of a layer cannot be quantized dynamically; empty if it can."""
    if layer.op in (*RECURRENT_OPS, TABLE_OP):
        return "of recurrent layers and of tables the weight alone is quantized"
    if layer.is_half:
        return "it computes in 16-bit floats, which DynamicQuantizeLinear does not take"
    if layer.op == "Conv":
        return _why_not_unfolded(layer)
    if layer.op not in _PRODUCTS:
        return f"onnxruntime's {layer.op} on such integers is slower than in floats"
    if layer.weight_index == 0:
        return "its weight is the left factor, which no kernel takes in int8 beside bytes on the right"
    return ""


def _why_not_unfolded(layer: Layer) -> str:
    """Why a convolution cannot be one product over all that its windows cover."""
    if layer.groups > 1:
        return "its groups would be products of their own"
    if layer.weight_only:
        return "it is in a body, where its times are not foretold"
    if attribute(layer.node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its padding depends on the size of its operand"
    return ""


def is_product(layer: Layer) -> bool:
    """Whether the layer is a MatMul or Gemm that can be dynamic."""
    return layer.op in _PRODUCTS and not why_not_dynamic(layer)


def mostly_products(layers: Sequence[Layer]) -> bool:
    """Whether more than half of the layers are products that can be dynamic, as in transformers."""
    return 2 * sum(is_product(layer) for layer in layers if not layer.weight_only) > sum(
        not layer.weight_only for layer in layers
    )
