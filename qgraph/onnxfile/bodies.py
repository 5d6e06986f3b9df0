"""The bodies of If, Loop and Scan: weights moved to the main graph, tensors with names and readers of their own.

A constant does not depend on the branch that is taken, nor does what is computed from constants alone (the gates of an
LSTM that an exporter splits and joins again at every step). In the main graph they are computed once, by
`fold_constants`, and stored once, however many bodies read them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir

from qgraph.onnxfile.edit import add_initializer, constant, unique_name
from qgraph.onnxfile.folding import Declined, constant_nodes, fold_constants
from qgraph.running.inner import bodies, branches
from qgraph.running.unused import remove_unused

_READ_BY_KERNELS = ("Conv", "Gemm", "MatMul")
_READ_AT_EVERY_STEP = ("Conv",)  # products stay dynamic or in floats there
_LARGE = 1024  # bytes: a smaller constant stays in its body, where shapes are inferred from its values


def lift_weights_out_of_bodies(model: ir.Model) -> Declined:
    """Move large constants of bodies, and what is computed from them alone, to the main graph, and merge equal ones.

    Returns the moved nodes that are computed at run time, with the reason.
    """
    main = model.graph
    before = set(main.initializers.values())
    bodies = list(main.subgraphs())
    for body in bodies:
        for value in [v for v in body.initializers.values() if _is_large(v) and not v.is_graph_output()]:
            _move_initializer(body, main, value)
    moved = _move_nodes(main, bodies)
    if not moved and before == set(main.initializers.values()):
        return []
    declined = fold_constants(model) if moved else []
    _merge_twins(main, before)
    remove_unused(model)
    return [(node, why) for node, why in declined if node in moved]


def set_bodies_apart(model: ir.Model) -> None:
    """Give every tensor of a body a name that no other tensor has, and copy what its layers read from outside.

    Siblings may share names; plans tell tensors by their names. Codes do not go into bodies, nor do they pass as the
    states of a loop: the layers of a body that may run on integers quantize a copy, which is nothing but another name.
    """
    seen: set[str] = {str(v.name) for v in (*model.graph.inputs, *model.graph.initializers.values())}
    seen |= {str(v.name) for node in model.graph for v in node.outputs}
    for body in model.graph.subgraphs():
        for value in (*body.inputs, *body.initializers.values(), *(v for node in body for v in node.outputs)):
            if value.name in seen:
                _rename(body, value, unique_name(model.graph, str(value.name)))
            seen.add(str(value.name))
    once = branches(model.graph)
    for body in bodies(model.graph):
        kernels = _READ_BY_KERNELS if body in once else _READ_AT_EVERY_STEP
        copies: dict[ir.Value, ir.Value] = {}
        for node in [n for n in body if n.op_type in kernels and not n.domain]:
            for index, read in enumerate(node.inputs[:2]):
                if read is not None and read.const_value is None and (read.graph is not body or read.is_graph_input()):
                    copies[read] = copies.get(read) or _copied(model.graph, body, node, read)
                    node.replace_input_with(index, copies[read])


def _rename(body: ir.Graph, value: ir.Value, name: str) -> None:
    if value.const_value is not None and value.is_initializer():
        del body.initializers[str(value.name)]
        value.name = value.const_value.name = name
        body.initializers[name] = value
    value.name = name


def _copied(main: ir.Graph, body: ir.Graph, reader: ir.Node, value: ir.Value) -> ir.Value:
    """A copy of an outer tensor in the body, in front of what reads it."""
    copy = ir.node("Identity", [value], name=unique_name(main, f"{value.name}/copy"))
    body.insert_before(reader, copy)
    copied = copy.outputs[0]
    copied.name, copied.type, copied.shape = str(copy.name), value.type, value.shape
    return copied


def _is_large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes >= _LARGE


def _move_initializer(body: ir.Graph, main: ir.Graph, value: ir.Value) -> None:
    del body.initializers[str(value.name)]
    value.name = unique_name(main, str(value.name))
    if value.const_value is not None:
        value.const_value.name = value.name
    main.register_initializer(value)


def _move_nodes(main: ir.Graph, bodies: list[ir.Graph]) -> set[ir.Node]:
    """Move what is computed from large constants alone, and what that needs, to the front of the main graph."""
    known = {v for graph in (main, *bodies) for v in graph.initializers.values() if not v.is_graph_input()}
    large = {value for value in known if _is_large(value)}
    first = next(iter(main), None)
    moved: set[ir.Node] = set()
    for body in bodies:
        nodes = []
        for node in constant_nodes(body, also=known):
            read = [v for v in node.inputs if v is not None]
            if all(v in known for v in read) and not any(v.is_graph_output() for v in node.outputs):
                nodes.append(node)
                known.update(node.outputs)
                large.update(node.outputs if any(v in large for v in read) else ())
        needed = _needed({node for node in nodes if node.outputs[0] in large})
        for node in (node for node in nodes if node in needed):
            _move_node(main, node, first)
            moved.add(node)
    return moved


def _needed(nodes: set[ir.Node]) -> set[ir.Node]:
    """The nodes, and those of the same graph that they depend on."""
    found, pending = set(nodes), list(nodes)
    while pending:
        node = pending.pop()
        before = {v.producer() for v in node.inputs if v is not None and v.producer() is not None}
        fresh = {one for one in before if one is not None and one.graph is node.graph} - found
        found |= fresh
        pending += fresh
    return found


def _move_node(main: ir.Graph, node: ir.Node, first: ir.Node | None) -> None:
    body = node.graph
    if body is None or first is None:
        return
    body.remove(node)
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if value is not None and array is not None and value.graph is not main:
            node.replace_input_with(index, add_initializer(main, str(value.name), array))
    for value in node.outputs:
        value.name = unique_name(main, str(value.name))
    main.insert_before(first, node)


def _merge_twins(main: ir.Graph, before: set[ir.Value]) -> None:
    """Replace equal constants by one of them, if it is new or they are."""
    known: dict[tuple[object, ...], ir.Value] = {}
    for value in sorted(main.initializers.values(), key=lambda v: v not in before):
        array = constant(value)
        if array is None or value.is_graph_output() or not _is_large(value) or array.dtype.kind not in "fiub":
            continue
        content = hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).digest()
        twin = known.setdefault((array.dtype, array.shape, content), value)
        if twin is not value and value not in before:
            value.replace_all_uses_with(twin)
            del main.initializers[str(value.name)]
