"""The weights in the bodies of If, Loop and Scan, moved to the main graph.

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
from qgraph.running.unused import remove_unused

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
