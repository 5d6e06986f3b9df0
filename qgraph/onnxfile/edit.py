"""The basic edits of every graph rewrite: read a constant, add one, append a node, find a free name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.onnxfile.lazy_array import Later

_NAMES = "qgraph: names in use"


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of a value, or None when it is not a constant."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any] | np.generic | Later) -> ir.Value:
    """Register a constant under `name`, with a number appended if that is taken."""
    unique = unique_name(graph, name)
    tensor = array.tensor(unique) if isinstance(array, Later) else ir.Tensor(np.asarray(array), name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
    value.dtype = tensor.dtype
    graph.register_initializer(value)
    return value


def append_node(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    *,
    body: ir.Graph | None = None,
) -> ir.Node:
    """Add a node at the end of the graph; the name of its output is not in use in subgraphs either.

    What reads tensors of a body goes there, and so does what is asked for in a `body`.
    """
    node = ir.node(op_type, list(inputs), attributes=dict(attributes))
    _innermost(graph, inputs, body).append(node)
    node.outputs[0].name = unique_name(graph, str(node.outputs[0].name))
    return node


def _innermost(graph: ir.Graph, inputs: Sequence[ir.Value | None], body: ir.Graph | None) -> ir.Graph:
    """Of the graph, the `body` and the graphs of the inputs, which contain one another, the one inside all others."""
    found = {value.graph for value in inputs if value is not None and isinstance(value.graph, ir.Graph)}
    found |= {graph if body is None else body}
    return found.pop() if len(found) == 1 else min(found, key=lambda one: sum(1 for _ in one.subgraphs()))


def append_dynamic(graph: ir.Graph, value: ir.Value, *, body: ir.Graph | None = None) -> ir.Node:
    """Add a DynamicQuantizeLinear, whose outputs are codes, scale and zero point of `value`."""
    node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
    _innermost(graph, [value], body).append(node)
    kinds = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for output, kind, shape in zip(node.outputs, kinds, (value.shape, ir.Shape([]), ir.Shape([])), strict=True):
        output.name = unique_name(graph, str(output.name))
        output.type, output.shape = ir.TensorType(kind), shape
    return node


def take_place(graph: ir.Graph, old: ir.Value, new: ir.Value, *, left: str) -> None:
    """Give the name and all readers of `old` to `new`; `old` is renamed, with `left` appended to its name."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name = old.name
    old.name, new.name = unique_name(graph, f"{name}/{left}"), name
    new.shape, new.type = old.shape, old.type


def unique_name(graph: ir.Graph, name: str) -> str:
    """`name`, with a number appended if a tensor of the graph or of its subgraphs has it; reserved from now on."""
    owner, taken = graph.meta.get(_NAMES, (None, {}))
    if owner is not graph:  # a clone inherits the entry of the original
        taken = {str(v.name): 1 for g in (graph, *graph.subgraphs()) for v in (*g.inputs, *g.initializers.values())}
        taken |= {str(v.name): 1 for node in ir.traversal.RecursiveGraphIterator(graph) for v in node.outputs}
        graph.meta[_NAMES] = graph, taken
    return numbered(name, taken, separator=".")


def numbered(name: str, taken: dict[str, int], *, separator: str) -> str:
    """`name`, with the next free number appended if it is in use; `taken` has the last number of every name in use."""
    unique, suffix = name, taken.get(name, 1)
    while unique in taken:
        suffix += 1
        unique = f"{name}{separator}{suffix}"
    if unique != name:
        taken[name] = suffix
    taken[unique] = 1
    return unique


def name_everything(model: ir.Model, *, also_unnamed: bool = True) -> None:
    """Give every node a unique name: its own, or one made of its operator and first output."""
    seen: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not node.name and not also_unnamed:
            continue
        node.name = numbered(name_of(node), seen, separator="_")


def rename_twins(model: ir.Model) -> None:
    """Number the nodes that share a name: onnxruntime does not load them."""
    name_everything(model, also_unnamed=False)


def name_of(node: ir.Node) -> str:
    """The name of a node, or one made of its operator and first output."""
    return node.name or f"{node.op_type}_{node.outputs[0].name}"
