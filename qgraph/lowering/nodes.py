"""Add nodes and constants to a graph, small constants only once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.onnxfile.edit import add_initializer, append_node
from qgraph.onnxfile.lazy_array import Later


class Nodes:
    """Adds nodes and constants to one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._shared: dict[str, ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """Add a node and return its first output."""
        return append_node(self.graph, op_type, inputs, attributes).outputs[0]

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
