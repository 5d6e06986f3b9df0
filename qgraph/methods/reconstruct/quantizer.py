"""A grid in the training graph whose rounding can be dropped at random, value by value (QDrop, Wei et al., 2022).

`DropQuantize(x, scale, low, high, zero_point, highest, rounded, step)` is differentiated as one operator, then
expanded, with `rounded` 1 where values are rounded and 0 where rounding is dropped::

    x + rounded (DequantizeLinear(Min(QuantizeLinear(x), highest)) - x)

With g = dL/dy, and m = 1 where low < x < high or the rounding is dropped, dx = m g. Eq. 3 of LSQ+ for the step s, of
which every channel's scale is a multiple, takes two sums over all values, as y - x = 0 where rounding is dropped:

    dL/ds = (sum g y - sum dx x) / s,        dL/dlow = sum g - sum dx

dL/dlow is the gradient for a shift of the whole range, which moves only what is clipped.
"""

from __future__ import annotations

import onnx_ir as ir

from qgraph.gradient import Gradient, Node, op, rule
from qgraph.gradient.expression import dot

DOMAIN = "qgraph.reconstruct"
OPERATOR = "DropQuantize"
INPUTS = ("scale", "low", "high", "zero_point", "highest", "rounded", "step")


def drop_quantize(graph: ir.Graph, x: ir.Value, inputs: list[ir.Value], *, non_negative: bool) -> ir.Value:
    """Append the node; `inputs` are those of `INPUTS`; `non_negative` says that x is never below `low` = 0."""
    node = ir.node(OPERATOR, [x, *inputs], attributes={"non_negative": int(non_negative)}, domain=DOMAIN)
    graph.append(node)
    node.outputs[0].shape, node.outputs[0].type = x.shape, x.type
    return node.outputs[0]


@rule(OPERATOR, domain=DOMAIN)
def _drop_quantize(n: Node) -> Gradient:
    x, y, g, rounded = n.x, n.y, n.g, n.input(6)
    kind = int(g.dtype)
    inside = x < n.input(3)
    if not n.attribute("non_negative"):
        inside = op.And(inside, x > n.input(2))
    dx = g * op.Cast(op.Or(inside, rounded < 0.5), to=kind)
    by_step = (dot(g, y) - dot(dx, x)) / n.input(7)
    shifted = None if n.attribute("non_negative") else op.ReduceSum(g, keepdims=0) - op.ReduceSum(dx, keepdims=0)
    return dx, None, shifted, None, None, None, None, by_step


def expand(model: ir.Model) -> None:
    """Expand every `DropQuantize` into standard operators."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == OPERATOR and node.domain == DOMAIN:
            x, scale, _, _, zero_point, highest, rounded, _ = node.inputs
            codes = ir.node("QuantizeLinear", [x, scale, zero_point])
            cut = ir.node("Min", [codes.outputs[0], highest])
            back = ir.node("DequantizeLinear", [cut.outputs[0], scale, zero_point])
            moved = ir.node("Sub", [back.outputs[0], x])
            kept = ir.node("Mul", [moved.outputs[0], rounded])  # Where takes ten times as long
            total = ir.node("Add", [x, kept.outputs[0]])
            result, old = total.outputs[0], node.outputs[0]
            for made in (back, moved, kept, total):
                made.outputs[0].shape, made.outputs[0].type = old.shape, old.type
            graph.insert_before(node, [codes, cut, back, moved, kept, total])
            old.replace_all_uses_with(result, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            result.name = old.name
    model.opset_imports.pop(DOMAIN, None)
