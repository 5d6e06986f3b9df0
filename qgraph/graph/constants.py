"""The constants that stay in floating point: who reads them, how many bytes they take, and why."""

from __future__ import annotations

from collections.abc import Container, Iterator

import onnx_ir as ir

from qgraph.graph.layers import LAYER_OPS

WORTH_NAMING = 1024  # bytes: a node with less is named only where there is more to say of it
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_WHY = {
    "Gather": "a table that is looked up: nothing is multiplied",
    "Einsum": "onnxruntime has no integer kernel for Einsum",
} | dict.fromkeys(("LSTM", "GRU", "RNN"), "no integer kernel of onnxruntime is faster on recurrent layers")


def float_bytes(graph: ir.Graph, without: Container[str] = ()) -> dict[str, int]:
    """Bytes of the float constants that every node reads, by its name, in bodies too; each counted where it is first
    read. Nodes `without` are left out.
    """
    found: dict[str, int] = {}
    seen: set[ir.Value] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if str(node.name) in without:
            continue
        fresh = [v for v in node.inputs if v is not None and v.const_value is not None and v not in seen]
        seen.update(fresh)
        tensors = [v.const_value for v in fresh if v.const_value is not None] + list(_in_attributes(node))
        total = sum(tensor.nbytes for tensor in tensors if tensor.dtype in _FLOATS)
        if total:
            found[str(node.name)] = total
    return found


def reasons(graph: ir.Graph) -> dict[str, str]:
    """Why the constants of a node stay in floating point, for every node by name."""
    found = {}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.graph is not graph:
            found[str(node.name)] = "lies in the body of a control-flow operator"
        elif node.op_type in _WHY:
            found[str(node.name)] = _WHY[node.op_type]
        elif node.op_type not in LAYER_OPS:
            found[str(node.name)] = f"onnxruntime computes {node.op_type} with a constant in floats"
    return found


def _in_attributes(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    return (a.as_tensor() for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR)
