"""The constants that a file still holds in floating point."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_KEEPS_CLASSES = frozenset({"Add", "Identity", "Cast"})


def float_constant_bytes(model: ir.Model) -> int:
    """The bytes of floating-point constants in a file, including subgraphs, but not the scales of quantizers."""
    return sum(tensor.nbytes for tensor in _tensors(model) if tensor.dtype in _FLOATS)


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    graphs = [model.graph]
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and node.op_type == "Constant":
                yield attribute.value
            elif attribute.type == ir.AttributeType.GRAPH:
                graphs.append(attribute.value)
            elif attribute.type == ir.AttributeType.GRAPHS:
                graphs.extend(attribute.value)
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None and not _is_grid(value):
                yield value.const_value


def _is_grid(value: ir.Value) -> bool:
    uses = value.uses()
    return bool(uses) and all(use.node.op_type in _QUANTIZERS and use.idx > 0 for use in uses)


def is_linear(output: ir.Value) -> bool:
    """Whether an output is the result of a linear layer along its last axis, most likely scores before a softmax."""
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("MatMul", "Gemm"):
            return is_constant(node.inputs[1])
        if node.op_type not in _KEEPS_CLASSES:
            return False
        value = next((v for v in node.inputs if not is_constant(v)), None)
    return False


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is computed from constants alone."""
    pending, seen = [value], set()
    while pending:
        one = pending.pop()
        if one is None or one in seen or one.const_value is not None:
            continue
        seen.add(one)
        producer = one.producer()
        if producer is None:
            return False
        pending.extend(producer.inputs)
    return True
