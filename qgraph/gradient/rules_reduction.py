"""Gradients of reductions: the gradient of the reduced tensor is spread over the axes that were reduced."""

from __future__ import annotations

from qgraph.gradient.expression import Expr, constant, op
from qgraph.gradient.registry import Gradient, Node, rule
from qgraph.gradient.rules_elementwise import keep
from qgraph.gradient.shapes import count, rank, shape, total


def reduced_axes(n: Node) -> list[int]:
    """The axes of a reduction, from its attribute (before opset 18) or its input."""
    ndim = rank(n.x)
    axes = n.attribute("axes")
    if n.has(1):
        known = n.constant(1)
        if known is None:
            raise n.error("its axes are computed at run time; make them a constant")
        axes = known.tolist()
    if not axes:
        return [] if n.attribute("noop_with_empty_axes", 0) else list(range(ndim))
    return sorted(a % ndim for a in axes)


def restored(n: Node, y: Expr) -> Expr:
    """`y`, a tensor of the output's shape, with the reduced axes restored with size 1."""
    axes = reduced_axes(n)
    if n.attribute("keepdims", 1) or not axes:
        return y
    return op.Unsqueeze(y, constant(axes))


@rule("ReduceSum")
def reduce_sum(n: Node) -> Gradient:
    return op.Expand(restored(n, n.g), shape(n.x))


@rule("ReduceMean")
def reduce_mean(n: Node) -> Gradient:
    return op.Expand(restored(n, n.g) / count(n.x, reduced_axes(n)), shape(n.x))


@rule("ReduceMax", "ReduceMin")
def reduce_extremum(n: Node) -> Gradient:  # shared equally among ties
    attained = op.Cast(op.Equal(n.x, restored(n, n.y)), to=int(n.x.dtype))
    return attained * (restored(n, n.g) / total(attained, reduced_axes(n)))


@rule("ReduceL1")
def reduce_l1(n: Node) -> Gradient:
    return op.Sign(n.x) * restored(n, n.g)


@rule("ReduceL2")
def reduce_l2(n: Node) -> Gradient:  # x / y, and 0 where the norm is 0
    norm, g = restored(n, n.y), restored(n, n.g)
    return n.x * keep(norm > 0.0, g / norm)


@rule("ReduceSumSquare")
def reduce_sum_square(n: Node) -> Gradient:
    return n.x * (restored(n, n.g) * 2.0)


@rule("ReduceLogSum")
def reduce_log_sum(n: Node) -> Gradient:  # y = ln s, dy/dx = 1/s
    return op.Expand(restored(n, n.g * op.Exp(-n.y)), shape(n.x))


@rule("ReduceLogSumExp")
def reduce_log_sum_exp(n: Node) -> Gradient:
    return op.Exp(n.x - restored(n, n.y)) * restored(n, n.g)


@rule("GlobalAveragePool")
def global_average_pool(n: Node) -> Gradient:
    return op.Expand(n.g / count(n.x, range(2, rank(n.x))), shape(n.x))


@rule("GlobalMaxPool")
def global_max_pool(n: Node) -> Gradient:
    attained = op.Cast(op.Equal(n.x, n.y), to=int(n.x.dtype))
    return attained * (n.g / total(attained, range(2, rank(n.x))))
