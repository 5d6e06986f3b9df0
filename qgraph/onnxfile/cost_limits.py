"""What a graph would compute when run: refused if that never ends, or takes memory out of all proportion.

A file of a few bytes can ask for terabytes (Expand, Pad, ConstantOfShape) or for an endless loop. Neither can be
stopped from outside once onnxruntime has started.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from qgraph.errors import ModelError
from qgraph.onnxfile.content import memory

GROWING_OPS = frozenset(
    {"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "EyeLike"}
)
_ALWAYS = 2**26  # bytes that any tensor may have
_GROWTH = 2**8  # or this many times the bytes of all weights and inputs together
_MOST_ROUNDS = 2**31  # of a loop
_MOST_PADDING = 2**20  # along an axis whose length is not known


def check_bounds(model: ir.Model) -> None:
    """Raise `ModelError` for a tensor or a loop that no machine could compute; needs shapes."""
    graph = model.graph
    given = sum(_bytes(v) for v in (*graph.inputs, *graph.initializers.values()))
    limit = min(max(_ALWAYS, _GROWTH * given), memory())
    for node in graph:
        largest = max((_bytes(v) for v in node.outputs), default=0)
        if largest > limit:
            raise ModelError(
                f"{node.op_type} '{node.name}' makes a tensor of {largest:,} bytes from {given:,} bytes of weights and "
                f"inputs; the limit is {limit:,}: export the model again"
            )
        if node.op_type == "Pad" and len(node.inputs) > 1 and _highest(node.inputs[1]) > _MOST_PADDING:
            raise ModelError(
                f"Pad '{node.name}' adds {_highest(node.inputs[1]):,} values along one axis; export the model again"
            )
    for node in _loops(model):
        if _is_endless(node):
            raise ModelError(
                f"Loop '{node.name}' never ends: its condition is always true, and it has no trip count that can be "
                f"reached; export the model again"
            )


def _bytes(value: ir.Value) -> int:
    """Bytes of a tensor, with 1 for every unknown dimension."""
    if value.const_value is not None:
        return value.const_value.nbytes
    if value.shape is None:
        return 0
    size = math.prod(d for d in value.shape if isinstance(d, int) and d >= 0)
    return size * (4 if value.dtype is None or value.dtype == ir.DataType.STRING else -(-value.dtype.bitwidth // 8))


def _highest(value: ir.Value | None) -> int:
    """The highest number of a constant; 0 for a computed tensor."""
    tensor = None if value is None else value.const_value
    return 0 if tensor is None or not tensor.size else int(tensor.numpy().max())


def _loops(model: ir.Model) -> Iterator[ir.Node]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return (node for node in nodes if node.op_type == "Loop" and node.domain == "")


def _is_endless(loop: ir.Node) -> bool:
    """Whether the loop provably continues beyond 2^31 iterations, whatever the inputs."""
    trips, condition = (*loop.inputs, None, None)[:2]
    if trips is not None and 0 <= _highest(trips) < _MOST_ROUNDS:
        return False  # computed at run time (0 here), or reachable
    starts = condition is None or _is_true(condition)
    body = loop.attributes["body"].as_graph() if "body" in loop.attributes else None
    if not starts or body is None or len(body.inputs) < 2 or not body.outputs:
        return False
    goes_on: ir.Value | None = body.outputs[0]
    while goes_on is not None and (node := goes_on.producer()) is not None and node.op_type == "Identity":
        goes_on = node.inputs[0]
    return goes_on is body.inputs[1] or _is_true(goes_on)


def _is_true(value: ir.Value | None) -> bool:
    if value is None:
        return False
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        return bool(producer.attributes["value"].as_tensor().numpy().all())
    return value.const_value is not None and not value.is_graph_input() and bool(value.const_value.numpy().all())
