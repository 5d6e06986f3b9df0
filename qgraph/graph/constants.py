"""The constants that stay in floating point: which nodes read them, how many bytes they take, and why they stay."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

import onnx_ir as ir

from qgraph.graph.layers import LAYER_OPS, RECURRENT_OPS, RECURRENT_WEIGHTS

WORTH_NAMING = 1024  # bytes: a node with less is named only for another reason
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_WHY = {
    "Gather": "a lookup table: nothing is multiplied",
    "Einsum": "onnxruntime has no integer kernel for Einsum",
} | dict.fromkeys(RECURRENT_OPS, "what recurrent layers add stays in floating point")


def float_bytes(paths: Mapping[ir.Node, str], without: Container[str] = ()) -> dict[str, int]:
    """Bytes of the float constants that each node reads, by its name in `paths`.

    A constant counts for the first node that reads it. The weights of a recurrent layer have names of their own. Layers
    `without` are left out.
    """
    found: dict[str, int] = {}
    seen: set[ir.Value] = set()
    for node, path in paths.items():
        for name, values in _parts(node, path):
            if name in without:
                continue
            fresh = [v for v in values if v.const_value is not None and v not in seen]
            seen.update(fresh)
            tensors = [v.const_value for v in fresh if v.const_value is not None]
            tensors += _in_attributes(node) if name == path else []
            total = sum(tensor.nbytes for tensor in tensors if tensor.dtype in _FLOATS)
            if total:
                found[name] = total
    return found


def reasons(paths: Mapping[ir.Node, str]) -> dict[str, str]:
    """Why the constants of a node stay in floating point, for every node by its name in `paths`."""
    found = {}
    for node, path in paths.items():
        if node.op_type in _WHY:
            found[path] = _WHY[node.op_type]
        elif node.op_type not in LAYER_OPS:
            found[path] = f"onnxruntime computes {node.op_type} with a constant in floats"
    return found


def _parts(node: ir.Node, path: str) -> Iterator[tuple[str, list[ir.Value]]]:
    """The values that a node reads, by name: one list, with the weights of a recurrent layer apart."""
    own = RECURRENT_WEIGHTS if node.op_type in RECURRENT_OPS else {}
    read = {index: v for index, v in enumerate(node.inputs) if v is not None}
    yield from ((f"{path}/{own[index]}", [v]) for index, v in read.items() if index in own)
    yield path, [v for index, v in read.items() if index not in own]


def _in_attributes(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    return (a.as_tensor() for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR)
