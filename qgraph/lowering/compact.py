"""The last pass of an export: shorten names and drop types that nobody reads.

With weights of 2 to 4 bits, the description of the graph takes as much as a third of the bytes of the weights. Nobody
reads the names that quantization made up, nor the types and shapes of inner tensors, which every reader infers:

* inner tensors and constants that the float model does not have get names of a few letters, and their nodes get none;
* inner tensors carry no type or shape, except where a subgraph may need them.

Everything from the float model keeps its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, product
from string import ascii_lowercase

import onnx_ir as ir


def compact(net: ir.Model, *, known: Iterable[str]) -> None:
    """Shorten names in place, except those in `known`, the tensors and nodes of the float model."""
    graph = net.graph
    kept = {*known, *(str(v.name) for v in (*graph.inputs, *graph.outputs)), *_names_in_bodies(graph)}
    fresh = (name for name in _names() if name not in kept)
    for value in list(graph.initializers.values()):
        if value.name not in kept:
            _rename_initializer(graph, value, next(fresh))
        if not value.is_graph_output():
            value.type = value.shape = None  # the constant itself has both
    has_bodies = any(True for _ in graph.subgraphs())  # they may need types
    for node in graph:
        if node.name not in kept:
            node.name = ""
        for value in node.outputs:
            if value.name and value.name not in kept:
                value.name = next(fresh)
            if not has_bodies and not value.is_graph_output():
                value.type = value.shape = None


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    del graph.initializers[str(value.name)]
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    graph.initializers[name] = value


def _names_in_bodies(graph: ir.Graph) -> Iterator[str]:
    """The names that subgraphs define, which no outer tensor may have."""
    for body in graph.subgraphs():
        yield from (str(v.name) for v in (*body.inputs, *body.initializers.values()))
        yield from (str(v.name) for node in body for v in node.outputs)


def _names() -> Iterator[str]:
    """a, b, ..., z, aa, ab, ..."""
    for length in count(1):
        yield from map("".join, product(ascii_lowercase, repeat=length))
