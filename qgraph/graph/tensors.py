"""What the graph tells about a tensor: whose grid it shares, and whether it can be negative.

A *transparent* operator moves values without changing them (Reshape, MaxPool, Slice, ...), so its output shares the
grid of its input. The *root* of a tensor is found by following transparent operators upwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from qgraph.graph.layers import Layer, attribute, present
from qgraph.graph.walk import uses_here, walk
from qgraph.onnxfile.edit import constant
from qgraph.running.inner import is_body

T = TypeVar("T")
CLIPPING_OPS = frozenset({"Relu", "Clip"})
TRANSPARENT_OPS = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Identity",
        "Dropout",
        "Pad",
    }
    | {"Resize", "DepthToSpace", "SpaceToDepth", "Expand"}
)
_NON_NEGATIVE_OPS = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Softplus", "Sqrt"})
_KEEPS_SIGN = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"})


def root(value: ir.Value) -> ir.Value:
    """The tensor whose grid `value` shares: itself, or the one that transparent operators moved it from."""
    while (before := moved_from(value)) is not None:
        value = before
    return value


def moved_from(value: ir.Value) -> ir.Value | None:
    """The tensor of the same graph that a transparent operator moved `value` from; None if there is none.

    What a body reads from outside, also as its input, has no grid inside, since codes do not go into bodies.
    """
    node = value.producer()
    if node is None or not is_transparent(node):
        return None
    before = present(node.inputs[0])
    entered = before.is_graph_input() and is_body(before.graph)
    return before if before.graph is value.graph and not entered else None


def is_transparent(node: ir.Node) -> bool:
    """Whether the node only moves values (or adds zeros), so that its output needs no grid of its own."""
    if node.op_type not in TRANSPARENT_OPS or node.domain != "":
        return False
    if node.op_type == "Pad":
        fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        given = len(node.inputs) > 2 and node.inputs[2] is not None
        mode = attribute(node, "mode", "constant")
        return mode != "constant" or not given or (fill is not None and not fill.any())
    if node.op_type == "MaxPool":
        return not _is_padded_low(node)
    if node.op_type == "Resize":
        extrapolates = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"  # a constant
        return bool(attribute(node, "mode", "nearest") == "nearest") and not extrapolates
    return True


def _is_padded_low(pool: ir.Node) -> bool:
    """Whether a pool reads a Pad that fills with the lowest number: no grid holds that, only the pool's result."""
    pad = present(pool.inputs[0]).producer()
    if pad is None or pad.op_type != "Pad" or pad.domain != "" or is_transparent(pad):
        return False
    fill = constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
    return fill is not None and bool((fill <= np.finfo(np.float16).min).any())


def fused_output(value: ir.Value) -> ir.Value:
    """The tensor to quantize for an operator's result: after the Relu or Clip that onnxruntime fuses into it."""
    uses = list(value.uses())
    if len(uses) == 1 and not value.is_graph_output() and uses_here(value):
        node = uses[0].node
        bounds = [v for v in node.inputs[1:] if v is not None]
        if node.op_type in CLIPPING_OPS and node.domain == "" and all(constant(v) is not None for v in bounds):
            return node.outputs[0]
    return value


def is_non_negative(value: ir.Value) -> bool:
    """Whether the graph guarantees value >= 0 (ReLU, sigmoid, a Clip from 0, and operators that keep the sign)."""
    return all(sign_sources(v) is not None for v in walk([value], lambda v: sign_sources(v) or ()))


def sign_sources(value: ir.Value) -> list[ir.Value] | None:
    """The tensors that must all be non-negative for `value` to be; None if the graph does not tell."""
    held = constant(value)
    if held is not None:
        return [] if held.dtype.kind in "fiu" and bool((held >= 0).all()) else None
    producer = value.producer()
    if producer is None or producer.domain != "":
        return None
    if producer.op_type in _NON_NEGATIVE_OPS:
        return []
    if producer.op_type == "Clip":
        low = constant(producer.inputs[1]) if len(producer.inputs) > 1 else None
        return [] if low is not None and bool(low >= 0) else None
    if producer.op_type == "Concat":
        return [v for v in producer.inputs if v is not None]
    if is_transparent(producer) or producer.op_type in _KEEPS_SIGN:
        return [present(producer.inputs[0])]
    return None


def upper_bound(value: ir.Value) -> float | None:
    """The constant maximum of the Clip that produced a tensor, if there is one."""
    node = value.producer()
    if node is None or node.op_type != "Clip" or len(node.inputs) < 3:
        return None
    bound = constant(node.inputs[2])
    return None if bound is None else float(bound)


def node_before(value: ir.Value) -> ir.Node | None:
    """The node before the one that writes a tensor, such as the convolution before a ReLU or Clip."""
    node = value.producer()
    return node.inputs[0].producer() if node is not None and node.inputs and node.inputs[0] is not None else None


def root_name(layer: Layer) -> str:
    """The name of the tensor that the layer's operand was moved from."""
    return str(root(layer.input).name)


def nearest(value: ir.Value, known: Mapping[str, T]) -> T | None:
    """The entry in a mapping for a tensor, or for the nearest one that transparent operators moved it from."""
    while value.name not in known:
        before = moved_from(value)
        if before is None:
            return None
        value = before
    return known[str(value.name)]
