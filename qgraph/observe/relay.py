"""Runs a graph from layer to layer on all samples at once, and keeps only what the nodes to come still read.

Between two steps the nodes that have not run may be changed: a layer can be rounded by what reaches it through the
layers before it, at the cost of a single run of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.walk import reads, walk
from qgraph.running.sessions import Session, in_parallel
from qgraph.samples.dataset import Batch

Arrays = list[NDArray[Any]]  # one for each batch


class Relay:
    """The state of a graph between two of its nodes, for every batch of samples."""

    def __init__(self, model: ir.Model, batches: Sequence[Batch], *, threads: int | None = None) -> None:
        self.model, self.threads = model, threads
        self.count = len(batches)
        self._done: set[ir.Node] = set()
        self._held: dict[ir.Value, Arrays] = {
            value: [batch.feeds[str(value.name)] for batch in batches]
            for value in model.graph.inputs
            if value.name in batches[0].feeds
        }

    def value(self, value: ir.Value) -> Arrays:
        """The value of a tensor for every batch, after all nodes that it depends on have run."""
        if value.const_value is not None:
            return [value.const_value.numpy()] * self.count
        if value not in self._held:
            self._run(self._missing(value), value)
        found = self._held[value]
        self._forget()
        return found

    def _missing(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that must run first, in graph order."""

        def before(node: ir.Node) -> list[ir.Node]:
            sources = [v.producer() for v in reads(node) if v not in self._held]
            return [source for source in sources if source is not None]

        producer = value.producer()
        needed = walk([producer] if producer is not None else [], before)
        return [node for node in self.model.graph if node in needed]

    def _run(self, nodes: Sequence[ir.Node], wanted: ir.Value) -> None:
        self._done.update(nodes)
        made = [v for node in nodes for v in node.outputs if v is wanted or self._is_read(v)]
        model, sources = part(self.model, nodes, made)
        session = Session(model, threads=1)

        def step(index: int) -> list[NDArray[Any]]:
            return session.run_list({str(v.name): self._held[v][index] for v in sources})

        rows = list(in_parallel(step, range(self.count), workers=self.threads))
        for value, arrays in zip(made, zip(*rows, strict=True), strict=True):
            self._held[value] = list(arrays)

    def _is_read(self, value: ir.Value) -> bool:
        """Whether a node that has not run reads the tensor."""
        return any(use.node not in self._done for use in value.uses())

    def _forget(self) -> None:
        self._held = {v: arrays for v, arrays in self._held.items() if self._is_read(v)}


def part(model: ir.Model, nodes: Sequence[ir.Node], made: Sequence[ir.Value]) -> tuple[ir.Model, list[ir.Value]]:
    """A model of these nodes alone with the outputs `made`, and the tensors that it reads."""
    inside = {v for node in nodes for v in node.outputs}
    outer = dict.fromkeys(v for node in nodes for v in reads(node) if v not in inside)
    sources = [v for v in outer if v.const_value is None]
    copies = {
        v: ir.Value(name=v.name, type=v.type, shape=_open(v), const_value=v.const_value) for v in (*outer, *inside)
    }
    parts = [
        ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else copies[v] for v in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            outputs=[copies[v] for v in node.outputs],
            name=node.name,
        )
        for node in nodes
    ]
    for value in (*sources, *made):
        copies[value].type = copies[value].type or ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [copies[v] for v in sources],
        [copies[v] for v in made],
        nodes=parts,
        initializers=[copies[v] for v in outer if v.const_value is not None],
        opset_imports=model.graph.opset_imports,
        name="part",
    )
    graph.sort()  # nodes may have been added at the end
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values())), sources


def _open(value: ir.Value) -> ir.Shape | None:
    """The rank of a tensor with open sizes; of a constant, its shape."""
    if value.shape is None or value.const_value is not None:
        return value.shape
    return ir.Shape([None] * len(value.shape))
