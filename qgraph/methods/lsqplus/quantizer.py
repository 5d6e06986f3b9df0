"""The learned quantizer as a node of the training graph.

`LearnedQuantize(x, scale, low, high, zero_point, offset)` is differentiated as one operator (LSQ+, Eq. 3 and 4), then
expanded into the operators that compute it fastest::

    QuantizeLinear (uint8) -> Min(qmax) -> DequantizeLinear, between Sub(offset) and Add(offset) if the offset is real

With g = dL/dx_hat, the mask m of low < x < high, and dx = m g, Eq. 3 and 4 take two dot products and two sums, because
round(v) - v = (x_hat - x) / scale inside the range and x_hat - offset = scale * n or scale * p outside:

    dL/doffset = sum g - sum dx
    dL/dscale  = (<g, x_hat> - <dx, x> - offset dL/doffset) / scale

A grid whose offset is an integer number of steps has a zero point instead (`shifted` = 0); its offset is still an
input, which gets the gradient.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qgraph.gradient import Gradient, Node, op, rule
from qgraph.gradient.expression import dot
from qgraph.onnxfile.edit import add_initializer

DOMAIN = "qgraph"
OPERATOR = "LearnedQuantize"


def learned_quantize(
    graph: ir.Graph,
    x: ir.Value,
    scale: ir.Value,
    low: ir.Value,
    high: ir.Value,
    zero_point: ir.Value,
    offset: ir.Value | None,
    *,
    qmax: int,
    shifted: bool,
    non_negative: bool,
) -> ir.Value:
    """Append the node; `non_negative` says that x is never below `low` (= 0), which saves a comparison."""
    attributes = {"qmax": qmax, "shifted": int(shifted), "non_negative": int(non_negative)}
    inputs = [x, scale, low, high, zero_point, offset]
    node = ir.node(OPERATOR, inputs[: 6 if offset is not None else 5], attributes=attributes, domain=DOMAIN)
    graph.append(node)
    result = node.outputs[0]
    result.shape, result.type = x.shape, x.type
    return result


@rule(OPERATOR, domain=DOMAIN)
def _learned_quantize(n: Node) -> Gradient:
    x, y, scale, g = n.x, n.y, n.input(1), n.g
    inside = x < n.input(3)
    if not n.attribute("non_negative"):
        inside = op.And(inside, x > n.input(2))
    dx = g * op.Cast(inside, to=int(g.dtype))  # faster than Where
    moved = dot(g, y) - dot(dx, x)
    if not n.has(5):
        return dx, moved / scale
    outside = op.ReduceSum(g, keepdims=0) - op.ReduceSum(dx, keepdims=0)
    if n.attribute("shifted"):
        moved = moved - n.input(5) * outside
    return dx, moved / scale, None, None, None, outside


def expand(model: ir.Model) -> None:
    """Expand every `LearnedQuantize` into standard operators."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == OPERATOR and node.domain == DOMAIN:
            _expand(graph, node)
    model.opset_imports.pop(DOMAIN, None)


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    x, scale, _, _, zero_point, *rest = node.inputs
    qmax, shifted = (node.attributes[name].as_int() for name in ("qmax", "shifted"))
    made: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value | None) -> ir.Value:
        made.append(ir.node(op_type, list(inputs)))
        return made[-1].outputs[0]

    codes = emit("QuantizeLinear", emit("Sub", x, rest[0]) if shifted else x, scale, zero_point)
    if qmax < 255:
        name = f"uint8:{qmax}"
        limit = graph.initializers.get(name) or add_initializer(graph, name, np.uint8(qmax))
        codes = emit("Min", codes, limit)
    result = emit("DequantizeLinear", codes, scale, zero_point)
    if shifted:
        result = emit("Add", result, rest[0])
    old = node.outputs[0]
    result.shape, result.type = old.shape, old.type
    graph.insert_before(node, made)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = old.name
