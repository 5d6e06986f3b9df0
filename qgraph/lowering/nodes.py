"""Add nodes and constants to a graph, small constants only once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.onnxfile.edit import add_initializer, append_node
from qgraph.onnxfile.lazy_array import Later


class Nodes:
    """Adds nodes and constants to a graph, nodes that read tensors of a body to that body."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.body = graph
        self._shared: dict[str, ir.Value] = {}

    def op(self, op_type: str, /, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """Add a node and return its first output."""
        return append_node(self.graph, op_type, inputs, attributes, body=self.body).outputs[0]

    @contextmanager
    def inside(self, body: ir.Graph) -> Iterator[None]:
        """Add nodes to a body, also those that read nothing of it: a kernel is fused from nodes of one graph."""
        before, self.body = self.body, body
        try:
            yield
        finally:
            self.body = before

    def constant(self, name: str, array: NDArray[Any] | np.generic | Later) -> ir.Value:
        """Add a constant of this name."""
        if not isinstance(array, Later) and array.ndim:
            array = np.ascontiguousarray(array)
        return add_initializer(self.graph, name, array)

    def shared(self, array: NDArray[np.generic] | np.generic) -> ir.Value:
        """A small constant, stored once per graph and named after its content."""
        data = np.asarray(array)
        numbers = data.reshape(-1).tolist()
        content = str(numbers[0]) if len(set(numbers)) == 1 else ",".join(map(str, numbers))
        name = f"{data.dtype}{'x'.join(map(str, data.shape))}:{content}"
        if name not in self._shared:
            self._shared[name] = add_initializer(self.graph, name, data)
        return self._shared[name]
