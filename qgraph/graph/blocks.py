"""Cuts a network into blocks: runs of nodes between places where a single tensor carries all that layers have computed.

Such a place lies behind a residual block, an inverted bottleneck, an attention or an MLP, and behind every layer of a
plain chain. Values that depend on no layer (masks, positions, sizes, the graph's inputs) may pass any place. Nodes
without a layer belong to the block before them; of single layers in a chain, a few form one block. Where many tensors
live side by side for long (in detectors), a stretch of too many layers is cut where the fewest do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qgraph.graph.sites import SHAPE_OPS, GraphView
from qgraph.graph.walk import descendants, reads

IN_CHAIN, AT_MOST = 3, 12  # layers of a block in a chain, and of any block


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive nodes, the layers among them, and the names of the tensors that enter and leave.

    Of those that enter, `sized` depend on sizes alone: they are the same for all batches of as many samples.
    """

    nodes: tuple[ir.Node, ...]
    layers: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sized: tuple[str, ...] = ()


def blocks(view: GraphView, *, in_chain: int = IN_CHAIN, at_most: int = AT_MOST) -> tuple[Block, ...]:
    """The blocks of a network, in graph order; every layer is in one."""
    cutter = _Cutter(view)
    cuts = cutter.joined(cutter.places(), in_chain)
    parts = [part for start, stop in zip([0, *cuts], cuts, strict=False) for part in cutter.split(start, stop, at_most)]
    made = [cutter.block(start, stop) for start, stop in parts]
    return tuple(block for block in made if block.layers)


class _Cutter:
    """The nodes of a graph in order, and how many computed tensors live between two of them."""

    def __init__(self, view: GraphView) -> None:
        self.nodes = list(view.model.graph)
        self.names = {layer.node: layer.name for layer in view.layers}
        behind = descendants([layer.output for layer in view.layers])
        self.varying = _varying(view.model.graph)
        self.computed = {v for node in (*self.names, *behind) for v in node.outputs} & self.varying
        at = {node: place for place, node in enumerate(self.nodes)}
        self.before = [0, *itertools.accumulate(node in self.names for node in self.nodes)]  # layers before a place
        self.last = dict.fromkeys(self.computed, -1)
        for node in self.nodes:  # what a body reads, its node reads
            for value in reads(node):
                if value in self.computed:
                    self.last[value] = at[node]
        self.made = {v: at[v.producer()] for v in self.computed if v.producer() in at}  # type: ignore[index]
        self.alive = self._alive()

    def _alive(self) -> list[int]:
        """The number of computed tensors that live behind each node."""
        change = [0] * (len(self.nodes) + 1)
        for value, start in self.made.items():
            if self.last[value] > start:
                change[start] += 1
                change[self.last[value]] -= 1
        total, found = 0, []
        for step in change[:-1]:
            total += step
            found.append(total)
        return found

    def count(self, start: int, stop: int) -> int:
        """The layers among nodes start..stop - 1."""
        return self.before[stop] - self.before[start]

    def places(self) -> list[int]:
        """Where to cut: behind which node one tensor lives, with a layer before and a layer until the next place."""
        single = [i + 1 for i, alive in enumerate(self.alive[:-1]) if alive == 1] + [len(self.nodes)]
        found: list[int] = []
        for place in single:
            start = found[-1] if found else 0
            if self.count(start, place):
                found.append(place)
            elif found:
                found[-1] = place  # without a layer: of the block before
        return found or [len(self.nodes)]

    def joined(self, cuts: Sequence[int], in_chain: int) -> list[int]:
        """The cuts without those between single layers of a chain, up to so many."""
        found: list[int] = []
        start, held = 0, 0
        for cut in cuts:
            layers = self.count(start, cut)
            if layers == 1 and 0 < held < in_chain:
                found[-1] = cut
                held += 1
            else:
                found.append(cut)
                held = 1 if layers == 1 else 0
            start = cut
        return found

    def split(self, start: int, stop: int, at_most: int) -> list[tuple[int, int]]:
        """Nodes start..stop - 1 in parts of at most so many layers, cut where the fewest tensors live."""
        total = self.count(start, stop)
        if total <= at_most:
            return [(start, stop)]

        def cost(place: int) -> tuple[int, float]:
            return self.alive[place - 1], abs(self.count(start, place) - total / 2)

        inner = [p for p in range(start + 1, stop) if total / 4 <= self.count(start, p) <= 3 * total / 4]
        if not inner:
            return [(start, stop)]
        middle = min(inner, key=cost)
        return [*self.split(start, middle, at_most), *self.split(middle, stop, at_most)]

    def block(self, start: int, stop: int) -> Block:
        inside = [n for n in self.nodes[start:stop] if n in self.names or any(v in self.computed for v in n.outputs)]
        made = {v for node in inside for v in node.outputs}
        entering = dict.fromkeys(v for node in inside for v in reads(node) if v not in made and v.const_value is None)
        leaving = [v for v in made if v in self.computed and (v.is_graph_output() or self.last[v] >= stop)]
        return Block(
            nodes=tuple(inside),
            layers=tuple(self.names[node] for node in inside if node in self.names),
            reads=tuple(str(v.name) for v in entering),
            writes=tuple(sorted(str(v.name) for v in leaving)),
            sized=tuple(str(v.name) for v in entering if v not in self.varying),
        )


def _varying(graph: ir.Graph) -> set[ir.Value]:
    """The tensors that depend on values that are fed, and not on their sizes alone."""
    found = {value for value in graph.inputs if value.const_value is None}
    for node in graph:
        if node.op_type not in SHAPE_OPS and any(value in found for value in reads(node)):
            found.update(node.outputs)
    return found
