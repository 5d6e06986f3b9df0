"""Which tensors share their channels' factors: between layers, through operators that factors pass.

If every layer that writes a tensor divides its channels by r > 0, and every layer that reads it multiplies its inputs
by r, the network computes the same, provided that what lies between is homogeneous in each channel: ReLU, sums, pools.
Sums tie the channels of their operands together, so that a chain of residual connections is one group. Where all of a
group is linear, a constant may also be taken from each channel of what a layer writes, and given to the biases of the
layers that read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer, attribute, pads
from qgraph.graph.sites import GraphView

_RECTIFIERS = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "GlobalMaxPool"})
_LINEAR = frozenset({"Identity", "AveragePool", "GlobalAveragePool", "Dropout"})


@dataclass(eq=False, kw_only=True)
class Tied:
    """Tensors whose channels share factors, the layers that write them, and those that read them."""

    tensors: dict[ir.Value, None] = field(default_factory=dict)
    writers: dict[Layer, None] = field(default_factory=dict)
    readers: dict[Layer, None] = field(default_factory=dict)
    linear: bool = True
    why_not: str = ""

    @property
    def channels(self) -> int:
        layer = next(iter(self.writers))
        return int(layer.weight_array().shape[layer.output_axis])

    @property
    def shifts(self) -> bool:
        """Whether a constant can be taken from every channel."""
        return self.linear and not any(pads(layer) for layer in self.readers)

    def offsets(self, written: Mapping[Layer, NDArray[np.float64]]) -> dict[ir.Value, NDArray[np.float64]]:
        """What is missing from every tensor if each layer writes so much less."""
        found = {layer.output: written[layer] for layer in self.writers}

        def of(value: ir.Value) -> NDArray[np.float64]:
            if value not in found:
                node = value.producer()
                inputs = [] if node is None else [v for v in node.inputs if v is not None and v in self.tensors]
                found[value] = np.sum([of(v) for v in inputs], axis=0)
            return found[value]

        return {value: of(value) for value in self.tensors}


def tied_channels(view: GraphView) -> tuple[Tied, ...]:
    """The groups of tensors that layers write, in graph order; `why_not` says what keeps factors out of one."""
    layers = {layer.node: layer for layer in view.layers}
    groups: list[Tied] = []
    seen: set[ir.Value] = set()
    for layer in view.layers:
        if layer.output not in seen:
            group = _grown(layer, layers)
            seen |= group.tensors.keys()
            groups.append(group)
    return tuple(groups)


def _grown(layer: Layer, layers: Mapping[ir.Node, Layer]) -> Tied:
    """The group of the tensor that a layer writes."""
    group, pending = Tied(), [layer.output]
    while pending:
        value = pending.pop()
        if value in group.tensors:
            continue
        group.tensors[value] = None
        pending += _before(group, value, layers)
        pending += _behind(group, value, layers)
    if not group.why_not and not group.readers:
        group.why_not = "no layer reads it"
    return group


def _before(group: Tied, value: ir.Value, layers: Mapping[ir.Node, Layer]) -> Iterator[ir.Value]:
    node = value.producer()
    if node is None:
        group.why_not = group.why_not or f"'{value.name}' is no result of a layer"
    elif node in layers:
        layer = layers[node]
        group.writers[layer] = None
        if why := _why_not(layer, "its results"):
            group.why_not = group.why_not or why
    else:
        yield from _through(group, node)


def _behind(group: Tied, value: ir.Value, layers: Mapping[ir.Node, Layer]) -> Iterator[ir.Value]:
    if value.is_graph_output():
        group.why_not = group.why_not or f"'{value.name}' is an output of the network"
    for use in value.uses():
        if use.node in layers and layers[use.node].input is value and use.node.graph is value.graph:
            layer = layers[use.node]
            group.readers[layer] = None
            if why := _why_not(layer, "its operand"):
                group.why_not = group.why_not or why
        else:
            yield from _through(group, use.node)


def _through(group: Tied, node: ir.Node) -> Iterator[ir.Value]:
    """The tensors around a node that factors pass; else the group is marked."""
    data = [v for v in node.inputs if v is not None and v.const_value is None]
    constants = len([v for v in node.inputs if v is not None]) - len(data)
    passes = node.op_type in _RECTIFIERS | _LINEAR | {"Add", "Sum"} and node.domain == ""
    constants -= node.op_type == "PRelu"
    padded = node.op_type == "AveragePool" and any(attribute(node, "pads", ()))
    if not passes or (node.op_type != "Dropout" and constants) or not _same_channels(data):
        group.why_not = group.why_not or f"{node.op_type} '{node.name}' is in between"
        return
    group.linear = group.linear and node.op_type not in _RECTIFIERS and not padded
    yield from data
    yield node.outputs[0]


def _same_channels(values: list[ir.Value]) -> bool:
    """Whether all have one known rank, and as many channels."""
    shapes = [v.shape for v in values]
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return False
    return len({(len(shape), str(shape[1])) for shape in shapes if shape is not None}) == 1


def _why_not(layer: Layer, what: str) -> str:
    return "" if layer.op == "Conv" and layer.owns_weight else f"'{layer.name}' cannot take factors for {what}"
