"""Removal of nodes that no output needs, and of what only the bodies of removed nodes read."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def remove_unused(model: ir.Model) -> None:
    """Remove what no output of the graph depends on, in place, except the inputs of the graph."""
    while True:
        before = list(model.graph)
        RemoveUnusedNodesPass()(model)
        left = set(model.graph)
        owners = [node for node in before if node not in left and _read(node)]
        if not owners:
            return
        for owner in owners:
            for node in _read(owner):
                for index in range(len(node.inputs)):
                    node.replace_input_with(index, None)


def _read(owner: ir.Node) -> list[ir.Node]:
    """The nodes in the bodies of a node that read anything."""
    bodies = [a.as_graph() for a in owner.attributes.values() if a.type == ir.AttributeType.GRAPH]
    bodies += [g for a in owner.attributes.values() if a.type == ir.AttributeType.GRAPHS for g in a.as_graphs()]
    inner = (node for body in bodies for node in ir.traversal.RecursiveGraphIterator(body))
    return [node for node in inner if any(value is not None for value in node.inputs)]
