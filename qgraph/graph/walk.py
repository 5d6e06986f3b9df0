"""Traversal of graphs: what depends on a tensor, and what a tensor depends on, through all operators or some.

A node that reads a tensor inside the body of an If, Loop or Scan is represented by the node that has the body. Every
traversal takes time proportional to what it visits, however deep.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any, TypeVar

import onnx_ir as ir

from qgraph.running.inner import bodies

T = TypeVar("T")
Passes = Callable[[ir.Node], bool]


def walk(start: Iterable[T], onward: Callable[[T], Iterable[T]]) -> dict[T, None]:
    """Everything that can be reached from `start` by `onward`, including `start`, each once and in the order found."""
    found = dict.fromkeys(start)
    pending = list(found)
    while pending:
        for one in onward(pending.pop()):
            if one not in found:
                found[one] = None
                pending.append(one)
    return found


def descendants(values: Iterable[ir.Value]) -> dict[ir.Node, None]:
    """All nodes that depend on any of the values."""
    owners = _Owners()
    return walk(
        (node for value in values for node in owners.readers(value)),
        lambda node: (reader for value in node.outputs for reader in owners.readers(value)),
    )


def ancestors(values: Iterable[ir.Value], *, until: Container[ir.Value] = ()) -> dict[ir.Node, None]:
    """All nodes that any of the values depends on, back to what `until` contains."""
    return walk(_producers(values), lambda node: _producers(v for v in reads(node) if v not in until))


def sources(values: Iterable[ir.Value], passes: Passes) -> dict[ir.Value, None]:
    """The values, and all that lead to them as the first result of nodes that `passes` accepts."""

    def before(value: ir.Value) -> Iterable[ir.Value]:
        node = value.producer()
        through = node is not None and value is node.outputs[0] and passes(node)
        return (v for v in node.inputs if v is not None) if node is not None and through else ()

    return walk(values, before)


def uses_here(value: ir.Value) -> list[Any]:
    """The uses by nodes of the tensor's own graph, without those inside bodies."""
    return [use for use in value.uses() if use.node.graph is value.graph]


def reads(node: ir.Node) -> list[ir.Value]:
    """The values of its own graph that a node reads, also in its bodies."""
    found = [v for v in node.inputs if v is not None]
    for body in _bodies(node):
        for inner in ir.traversal.RecursiveGraphIterator(body):
            found += [v for v in inner.inputs if v is not None and v.graph is node.graph]
        found += [v for v in body.outputs if v.graph is node.graph]
    return found


def owners(graph: ir.Graph) -> dict[ir.Graph, tuple[ir.Node, str]]:
    """The node and the attribute that each body within a graph belongs to, outer bodies first."""
    found: dict[ir.Graph, tuple[ir.Node, str]] = {}
    pending = [graph]
    while pending:
        for node in pending.pop():
            for where, body in _named_bodies(node):
                found[body] = node, where
                pending.append(body)
    return found


def paths(graph: ir.Graph) -> dict[ir.Node, str]:
    """The name of every node; inside a body, after the names of what contains it: `If_0/then_branch/conv1`."""
    found = {node: str(node.name) for node in graph}
    for body, (node, where) in owners(graph).items():
        found |= {inner: f"{found[node]}/{where}/{inner.name}" for inner in body}
    return found


def with_bodies(graph: ir.Graph) -> list[ir.Graph]:
    """The graph and its bodies in which tensors can be observed; outer ones first."""
    return [graph, *bodies(graph)]


def _producers(values: Iterable[ir.Value]) -> Iterable[ir.Node]:
    return (node for value in values if (node := value.producer()) is not None)


def has_bodies(node: ir.Node) -> bool:
    """Whether a node runs graphs of its own, as If, Loop and Scan do."""
    return any(True for _ in _bodies(node))


def _bodies(node: ir.Node) -> Iterable[ir.Graph]:
    return (body for _, body in _named_bodies(node))


def _named_bodies(node: ir.Node) -> Iterable[tuple[str, ir.Graph]]:
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((f"{name}/{index}", body) for index, body in enumerate(attribute.as_graphs()))


class _Owners:
    """Finds the readers of a value in its own graph: for a node inside a body, the node that has the body."""

    def __init__(self) -> None:
        self._known: dict[ir.Graph, dict[ir.Graph, ir.Node]] = {}

    def readers(self, value: ir.Value) -> Iterable[ir.Node]:
        for node in dict.fromkeys(use.node for use in value.uses()):
            owner = node if node.graph is value.graph else self._owner(node, value.graph)
            if owner is not None:
                yield owner

    def _owner(self, node: ir.Node, graph: ir.Graph | None) -> ir.Node | None:
        if not isinstance(graph, ir.Graph) or not isinstance(node.graph, ir.Graph):
            return node
        if graph not in self._known:
            self._known[graph] = {
                inner: owner for owner in graph for body in _bodies(owner) for inner in (body, *body.subgraphs())
            }
        return self._known[graph].get(node.graph, node)
