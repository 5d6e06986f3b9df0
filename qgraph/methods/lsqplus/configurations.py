"""Choose the configuration of a tensor (LSQ+, Table 1), and how its offset is represented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import onnx_ir as ir

from qgraph.graph.layers import LAYER_OPS, Layer, pads
from qgraph.graph.tensors import is_non_negative, is_transparent, root
from qgraph.graph.walk import walk
from qgraph.methods.lsqplus.config import Linear
from qgraph.plan.plan import MAX_BITS

_LINEAR = frozenset({*LAYER_OPS, "Add", "Sub", "BatchNormalization", "Concat", "AveragePool", "GlobalAveragePool"})


def configuration_of(value: ir.Value, bits: int, forced: int | None, *, linear: Linear = "offset") -> int:
    """The configuration of the tensor `value`: 1 unsigned, 2 signed, 3 signed with offset, 4 unsigned with offset.

    A tensor that cannot be negative (after a ReLU or sigmoid) needs neither sign nor offset and gets 1; any other gets
    4. Below 8 bits, the `forced` configuration applies. As in the paper (section 5.1), a forced 1 means 2 for tensors
    that no activation function writes, which would otherwise lose half of their values. With `linear` "symmetric", it
    is 2 for such tensors below 8 bits in any case.
    """
    if linear == "symmetric" and bits < MAX_BITS and _is_linear(value) and not is_non_negative(value):
        return 2
    if forced is None or bits == MAX_BITS:
        return 1 if is_non_negative(value) else 4
    return 2 if forced == 1 and _is_linear(value) else forced


def offset_kind(
    value: ir.Value, configuration: int, readers: list[Layer], *, alone: bool
) -> Literal["none", "real", "integer"]:
    """Whether an offset is real-valued or an integer number of steps (a zero point).

    A real offset is folded into the bias of the next layer. This is exact unless that layer pads with zeros or other
    nodes read the tensor too; then zero must be on the grid. `alone`: only layers read the tensor on this grid.
    """
    if configuration in (1, 2):
        return "none"
    nodes = {layer.node for layer in readers}
    alone = alone or (not value.is_graph_output() and _leads_only_to(value, nodes))
    return "real" if alone and not any(map(pads, readers)) else "integer"


def _leads_only_to(value: ir.Value, layers: set[ir.Node]) -> bool:
    """Whether every node that reads `value` is one of the layers, or moves it to them without padding."""

    def onward(node: ir.Node) -> Iterator[ir.Node]:
        return (use.node for use in node.outputs[0].uses() if node not in layers)

    return all(node in layers or _only_moves(node) for node in walk((use.node for use in value.uses()), onward))


def _only_moves(node: ir.Node) -> bool:
    return is_transparent(node) and node.op_type != "Pad" and not any(v.is_graph_output() for v in node.outputs)


def _is_linear(value: ir.Value) -> bool:
    producer = root(value).producer()
    return producer is None or producer.op_type in _LINEAR
