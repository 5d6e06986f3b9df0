"""Models that are already quantized: how that shows, and which tool probably did it."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

_MARKS = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"),
        *("ConvInteger", "MatMulInteger", "MatMulNBits", "DynamicQuantizeMatMul", "QAttention", "QLinearAdd"),
    }
)


def quantized_operators(model: ir.Model) -> dict[str, int]:
    """The number of operators of quantized arithmetic in a model, by type, including the bodies of control flow."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return dict(Counter(node.op_type for node in nodes if node.op_type in _MARKS))


def likely_tool(model: ir.Model) -> str:
    """The tool that probably quantized a model, by the names it leaves; '' if unknown."""
    producer = (model.producer_name or "").lower()
    names = [str(node.name or "") for node in ir.traversal.RecursiveGraphIterator(model.graph)]
    known = {"onnx.quantize": "onnxruntime", "neural": "neural-compressor", "quark": "AMD Quark", "nncf": "NNCF"}
    for word, tool in known.items():
        if word in producer:
            return tool
    if "pytorch" in producer:
        return "PyTorch"
    if any(name.endswith(("_QuantizeLinear", "_DequantizeLinear", "_quant")) for name in names):
        return "onnxruntime"
    return model.producer_name or ""
