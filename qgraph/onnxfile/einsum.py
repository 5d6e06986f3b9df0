"""An Einsum with a constant that is a matrix product, rewritten as a MatMul.

Reshapes stand around it where it sums over several axes, or makes several.

Pattern: Einsum "B K, K N -> B N" of a tensor and a constant, for letters B that both the tensor and the result begin
with, K that are summed over, and N that the constant alone has; those of the constant may stand in any order.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from qgraph.onnxfile.edit import add_initializer, constant

_EQUATION = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]+)")


def einsums_to_products(model: ir.Model) -> None:
    """Rewrite them in place, in bodies too; others stay as they are."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type == "Einsum" and len(node.inputs) == 2 and "equation" in node.attributes:
            axes = _axes(node)
            if axes is not None:
                _rewrite(model.graph, node, *axes)


def _axes(node: ir.Node) -> tuple[int, str, str, str] | None:
    """Which input is the constant, and the letters B, K and N; None where the Einsum is no such product."""
    found = _EQUATION.fullmatch(node.attributes["equation"].as_string().replace(" ", ""))
    arrays = [constant(value) for value in node.inputs]
    if found is None or (arrays[0] is None) == (arrays[1] is None):
        return None
    index = 0 if arrays[0] is not None else 1
    weight, read, made = found[1 + index], found[2 - index], found[3]
    if any(len(set(letters)) < len(letters) for letters in (weight, read, made)):
        return None
    summed = "".join(letter for letter in read if letter in weight)
    batch = read.removesuffix(summed)
    new = made.removeprefix(batch)
    whole = read == batch + summed and made == batch + new and set(weight) == {*summed, *new}
    apart = not set(summed) & set(made)
    return (index, batch, summed, new) if whole and apart and batch and summed and new else None


def _rewrite(main: ir.Graph, node: ir.Node, index: int, batch: str, summed: str, new: str) -> None:
    value, operand, graph = node.inputs[index], node.inputs[1 - index], node.graph
    array, equation = constant(value), node.attributes["equation"].as_string().replace(" ", "")
    if array is None or value is None or operand is None or graph is None:
        return
    letters = equation.split("->")[0].split(",")[index]
    ordered = array.transpose([letters.index(letter) for letter in summed + new])
    sizes = ordered.shape[len(summed) :]
    stored = add_initializer(main, f"{value.name}", np.ascontiguousarray(ordered.reshape(-1, int(np.prod(sizes)))))
    nodes = []
    if len(summed) > 1:
        flat = add_initializer(main, "einsum/rows", np.array([*[0] * len(batch), -1], np.int64))
        nodes.append(ir.node("Reshape", [operand, flat]))
        operand = nodes[-1].outputs[0]
    nodes.append(ir.node("MatMul", [operand, stored], name=node.name))
    if len(new) > 1:
        split = add_initializer(main, "einsum/columns", np.array([*[0] * len(batch), *sizes], np.int64))
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], split]))
    old, result = node.outputs[0], nodes[-1].outputs[0]
    graph.insert_before(node, nodes)
    for made in nodes[:-1]:
        made.outputs[0].name = f"{old.name}/{made.op_type}"
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name, result.shape, result.type = name, shape, kind
