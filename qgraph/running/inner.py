"""Tensors of the branches of Ifs as outputs of the whole graph, empty where the other branch was taken."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir


def brought_out(graph: ir.Graph, values: list[ir.Value]) -> list[ir.Value]:
    """The values, those of branches as further outputs of their Ifs, under their own names.

    What is in a Loop or Scan stays there: it has a value for every step.
    """
    owners = branches(graph)
    return [_brought_out(value, owners) if value.graph in owners else value for value in values]


def branches(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """The branches of Ifs, and of Ifs in these, each with its If; outer ones first.

    What is in them runs at most once, unlike the bodies of Loop and Scan and all that these contain.
    """
    found: dict[ir.Graph, ir.Node] = {}
    pending = [graph]
    while pending:
        for node in pending.pop(0):
            if node.op_type == "If" and not node.domain:
                found |= dict.fromkeys(_branches(node), node)
                pending += _branches(node)
    return found


def _branches(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _brought_out(value: ir.Value, owners: Mapping[ir.Graph, ir.Node]) -> ir.Value:
    """The output of the outermost If that has the value in the run that takes its branch."""
    name, kind = str(value.name), value.type or ir.TensorType(ir.DataType.FLOAT)
    value.name = f"{name}/inside"
    depth = 0
    while isinstance(taken := value.graph, ir.Graph) and taken in owners:
        node = owners[taken]
        for body in _branches(node):
            made = ir.node("Identity", [value]) if body is taken else _nothing(kind.dtype)
            made.outputs[0].name = f"{name}/{depth}/{'taken' if body is taken else 'left'}"
            made.outputs[0].type = kind
            body.append(made)
            body.outputs.append(made.outputs[0])
        node.resize_outputs(len(node.outputs) + 1)
        value = node.outputs[-1]
        value.type, value.name, depth = kind, f"{name}/{depth}", depth + 1
    value.name = name
    return value


def _nothing(dtype: ir.DataType) -> ir.Node:
    """A node that makes an empty tensor."""
    empty = ir.Tensor(np.zeros(0, dtype.numpy()), dtype=dtype)
    return ir.node("Constant", [], attributes={"value": empty})
