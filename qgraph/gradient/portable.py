"""The backward graph in standard ONNX operators: it runs wherever the model runs, and can be saved to a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qgraph.gradient.deferred import Contraction, contraction_of
from qgraph.gradient.emit import Emitter
from qgraph.gradient.errors import GradientError
from qgraph.gradient.expression import Expr, op, tensor
from qgraph.gradient.registry import Node, find_rule
from qgraph.gradient.rules_elementwise import swish, swish_gradient
from qgraph.gradient.shapes import dims, full, unbroadcast
from qgraph.graph.walk import descendants


def append_gradients(net: ir.Model, loss: ir.Value, wrt: Sequence[ir.Value]) -> list[ir.Value]:
    """Reverse mode: append to `net`'s graph what computes dL/dw for every w in `wrt`, and return those values.

    Nodes are visited from the loss backwards; a value's gradient, the sum over its consumers, is complete when its
    producer is reached. Only nodes between `wrt` and the loss are visited.
    """
    results, _ = append_operands(net, loss, wrt, deferred=())
    return [existing(result, value, loss) for result, value in zip(results, wrt, strict=True)]


def append_operands(
    net: ir.Model, loss: ir.Value, wrt: Sequence[ir.Value], *, deferred: Collection[ir.Value]
) -> tuple[list[ir.Value | None], list[Contraction]]:
    """The same, but without the terms of convolutions in the gradients of the values in `deferred`, their weights.

    Returns the part of each gradient that the graph computes, None for nothing, and the contractions that complete
    them.
    """
    sweep = _Sweep(net, wrt, deferred)
    sweep.pending[loss] = [_Term(full(1.0, tensor(loss)), _scope(loss))]
    for node in reversed(list(net.graph)):
        if any(v in sweep.reachable for v in node.inputs if v is not None):
            sweep.visit(node)
    return [sweep.settle(value) for value in wrt], sweep.contractions


@dataclass(frozen=True, slots=True)
class _Term:
    """The term of one consumer in the gradient of a value, and the node that it comes from."""

    gradient: Expr
    scope: str


class _Sweep:
    """The state of the backward sweep: gradients still being summed, and those that are complete."""

    def __init__(self, net: ir.Model, wrt: Sequence[ir.Value], deferred: Collection[ir.Value]) -> None:
        self.reachable = downstream(net.graph, wrt)
        self.contractions: list[Contraction] = []
        self._wrt = set(wrt)
        self._deferred = deferred
        self.pending: dict[ir.Value, list[_Term]] = {}
        self._complete: dict[ir.Value, ir.Value] = {}
        self._emitter = Emitter(net.graph)
        self._opset = net.opset_imports.get("", 1)

    def visit(self, node: ir.Node) -> None:
        """Complete the gradients of the node's outputs and pass them on to its inputs."""
        settled = [self.settle(v) for v in node.outputs]
        if all(g is None for g in settled):
            return
        seen = Node(node, [None if g is None else tensor(g) for g in settled], self._opset)
        if (contraction := contraction_of(seen, settled[0], self._deferred)) is not None:
            self.contractions.append(contraction)
        for value, gradient in self._input_gradients(seen):
            if contraction is not None and value is contraction.weight:
                continue
            self.pending.setdefault(value, []).append(_Term(gradient, node.name or node.op_type))

    def _input_gradients(self, node: Node) -> list[tuple[ir.Value, Expr]]:
        if (found := swish(node)) is not None:
            x, gate = found
            if gate not in self._wrt:
                return [(x, swish_gradient(node, tensor(gate)))]
        return _input_gradients(node, self.reachable)

    def settle(self, value: ir.Value) -> ir.Value | None:
        """The complete gradient of `value`, written to the graph on first use; None if no gradient reaches it."""
        if value in self.pending:
            terms = [self._written(t, value) for t in self.pending.pop(value)]
            total = terms[0]
            for term in terms[1:]:  # one by one: a tensor may have too many readers for recursion
                total = tensor(self._emitter.emit(op.Add(total, term), _scope(value)))
            summed = self._emitter.emit(total, _scope(value))
            _shape_like(summed, value)
            self._complete[value] = summed
        return self._complete.get(value)

    def _written(self, term: _Term, value: ir.Value) -> Expr:
        written = self._emitter.emit(term.gradient, term.scope)
        _shape_like(written, value)
        return tensor(written)


def _shape_like(gradient: ir.Value, value: ir.Value) -> None:
    if gradient.shape is None:
        gradient.shape = value.shape


def _scope(value: ir.Value) -> str:
    producer = value.producer()
    return str(producer.name if producer is not None else value.name)


def downstream(graph: ir.Graph, sources: Sequence[ir.Value]) -> set[ir.Value]:
    """Everything that depends on one of `sources`, including themselves."""
    return set(sources).union(*(node.outputs for node in descendants(sources)))


def _input_gradients(node: Node, wanted: set[ir.Value]) -> list[tuple[ir.Value, Expr]]:
    found = find_rule(node.ir, node.opset)
    result = found.function(node)
    gradients = (result,) if isinstance(result, Expr) or result is None else result
    pairs = []
    for value, gradient in zip(node.ir.inputs, gradients, strict=False):
        if value is None or gradient is None or value not in wanted:
            continue
        if found.broadcasts:
            gradient = unbroadcast(gradient, dims(node.y), tensor(value))
        pairs.append((value, gradient))
    return pairs


def existing(gradient: ir.Value | None, value: ir.Value, loss: ir.Value) -> ir.Value:
    """The gradient of `value`; raises `GradientError` if there is none."""
    if gradient is None:
        raise GradientError(
            f"'{loss.name}' does not depend on '{value.name}' through differentiable operators, so there is no gradient"
        )
    return gradient
