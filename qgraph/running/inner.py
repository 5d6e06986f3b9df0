"""Tensors of the bodies of If, Loop and Scan as outputs of the whole graph.

What is in a branch of an If is empty where the other branch was taken. What runs at every step of a Loop or Scan comes
as a sequence of its values, which the loop carries along and every step appends to. An If in a loop appends an empty
tensor in the steps that take its other branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qgraph.running.loops import as_loop, count_states, latest, observable, with_states

_CARRIES_SEQUENCES = 13  # the first opset whose Loop does


def brought_out(graph: ir.Graph, values: list[ir.Value]) -> list[ir.Value]:
    """The values, those of bodies as further outputs of their Ifs, Loops and Scans, under their own names.

    Scans become Loops, which alone carry sequences; the graph computes the same.
    """
    owners = bodies(graph)
    paths = {value: _around(value.graph, owners) for value in values if value.graph in owners}
    replaced: dict[ir.Value, ir.Value] = {}
    carried = _carried(paths, owners, replaced)
    found = {value: _brought_out(value, latest(value, replaced), owners, carried) for value in paths}
    return [found[value] if value in found else latest(value, replaced) for value in values]


def bodies(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """The bodies of Ifs, Loops and Scans, at any depth, whose tensors can be brought out, with nodes; outer first.

    Before opset 13, those of Loop and Scan stay there.
    """
    carries = graph.opset_imports.get("", 1) >= _CARRIES_SEQUENCES
    found: dict[ir.Graph, ir.Node] = {}
    pending = [graph]
    while pending:
        for node in pending.pop(0):
            if not node.domain and (node.op_type == "If" or (carries and observable(node))):
                found |= dict.fromkeys(_bodies(node), node)
                pending += _bodies(node)
    return found


def branches(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """The branches of Ifs, and of Ifs in these, each with its If; outer ones first.

    What is in them runs at most once, unlike the bodies of Loop and Scan and all that these contain.
    """
    found: dict[ir.Graph, ir.Node] = {}
    for body, node in bodies(graph).items():
        if node.op_type == "If" and (node.graph is graph or node.graph in found):
            found[body] = node
    return found


def is_body(graph: object) -> bool:
    """Whether a graph is the body of an operator: only the main graph says which opsets it uses."""
    return isinstance(graph, ir.Graph) and not graph.opset_imports


@dataclass(frozen=True, slots=True, eq=False)
class _Carried:
    """The sequence that a loop carries for one tensor: an input of its body, and its place among its results."""

    state: ir.Value
    index: int


Sequences = dict[tuple[ir.Value, ir.Graph], _Carried]


def _bodies(node: ir.Node) -> list[ir.Graph]:
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _around(graph: object, owners: Mapping[ir.Graph, ir.Node]) -> list[ir.Graph]:
    """The body, and those that contain it, innermost first."""
    found: list[ir.Graph] = []
    while isinstance(graph, ir.Graph) and graph in owners:
        found.append(graph)
        graph = owners[graph].graph
    return found


def _carried(
    paths: Mapping[ir.Value, list[ir.Graph]], owners: dict[ir.Graph, ir.Node], replaced: dict[ir.Value, ir.Value]
) -> Sequences:
    """Let every loop around the values carry a sequence for each; `owners` and `replaced` are brought up to date."""
    carried: Sequences = {}
    for body, node in [(body, node) for body, node in owners.items() if node.op_type != "If"]:
        through = [value for value, path in paths.items() if body in path]
        if not through:
            continue
        loop = as_loop(node, replaced) if node.op_type == "Scan" else node
        first = count_states(loop)
        begun = [_so_far(value, loop.graph, owners, carried) or _empty(value, loop) for value in through]
        owners[body], states = with_states(loop, begun, replaced)
        for place, (value, state) in enumerate(zip(through, states, strict=True)):
            carried[value, body] = _Carried(state, first + place)
    return carried


def _so_far(value: ir.Value, graph: object, owners: Mapping[ir.Graph, ir.Node], carried: Sequences) -> ir.Value | None:
    """The sequence of a tensor as it enters a step of the nearest loop around a graph; None outside of all."""
    known = (carried.get((value, body)) for body in _around(graph, owners))
    return next((one.state for one in known if one is not None), None)


def _empty(value: ir.Value, loop: ir.Node) -> ir.Value:
    """A sequence without a tensor, made in front of a loop."""
    made = _sequence("SequenceEmpty", [], value, f"{value.name}/none", dtype=_type(value).dtype)
    loop.graph.insert_before(loop, made)  # type: ignore[union-attr]
    return made.outputs[0]


def _brought_out(asked: ir.Value, value: ir.Value, owners: Mapping[ir.Graph, ir.Node], carried: Sequences) -> ir.Value:
    """The output of the outermost node that has the tensor `asked`, which is `value` by now."""
    name = str(value.name)
    kind: ir.TypeProtocol = _type(value)
    value.name = f"{name}/inside"
    so_far = _so_far(asked, value.graph, owners, carried)
    if so_far is not None:
        insert = _sequence("SequenceInsert", [so_far, value], value, f"{name}/steps")
        value.graph.append(insert)  # type: ignore[union-attr]
        value = insert.outputs[0]
    depth = 0
    while isinstance(inside := value.graph, ir.Graph) and inside in owners:
        node = owners[inside]
        if (own := carried.get((asked, inside))) is not None:
            inside.outputs.insert(1 + own.index, value)
            kind, value = value.type or kind, node.outputs[own.index]
        else:
            so_far = _so_far(asked, node.graph, owners, carried)
            kind, value = value.type or kind, _out_of_branch(node, value, so_far, f"{name}/{depth}")
        value.type, value.name, depth = kind, f"{name}/{depth}", depth + 1
    value.name = name
    return value


def _out_of_branch(node: ir.Node, value: ir.Value, so_far: ir.Value | None, name: str) -> ir.Value:
    """A further output of an If: the value where its branch is taken, elsewhere nothing more than `so_far`."""
    taken, kind = value.graph, value.type
    for body in _bodies(node):
        if body is not taken:
            made = _nothing(body, value, so_far, f"{name}/left")
        elif isinstance(kind, ir.SequenceType):
            made = value
        else:
            body.append(copy := ir.node("Identity", [value]))
            made = copy.outputs[0]
            made.name, made.type = f"{name}/taken", _type(value)
        body.outputs.append(made)
    node.resize_outputs(len(node.outputs) + 1)
    return node.outputs[-1]


def _nothing(body: ir.Graph, value: ir.Value, so_far: ir.Value | None, name: str) -> ir.Value:
    """An empty tensor, alone or behind a sequence; an empty sequence where a sequence begins in the other branch."""
    dtype = _type(value).dtype
    if isinstance(value.type, ir.SequenceType) and so_far is None:
        made = _sequence("SequenceEmpty", [], value, name, dtype=dtype)
    else:
        made = ir.node("Constant", [], attributes={"value": ir.Tensor(np.zeros(0, dtype.numpy()), dtype=dtype)})
        made.outputs[0].name, made.outputs[0].type = name, ir.TensorType(dtype)
        if so_far is not None:
            body.append(made)
            made = _sequence("SequenceInsert", [so_far, made.outputs[0]], value, f"{name}/steps")
    body.append(made)
    return made.outputs[0]


def _sequence(op_type: str, inputs: list[ir.Value], like: ir.Value, name: str, **attributes: int) -> ir.Node:
    """A node that makes a sequence of tensors of the type of `like`."""
    made = ir.node(op_type, inputs, attributes=attributes)
    made.outputs[0].name, made.outputs[0].type = name, ir.SequenceType(_type(like))
    return made


def _type(value: ir.Value) -> ir.TensorType:
    """The type of a tensor, or of those in a sequence; of floats where it is not known."""
    kind = value.type.elem_type if isinstance(value.type, ir.SequenceType) else value.type
    return ir.TensorType(kind.dtype if isinstance(kind, ir.TensorType) else ir.DataType.FLOAT)
