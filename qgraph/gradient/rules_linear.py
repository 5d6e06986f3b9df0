"""Gradients of convolutions and matrix products."""

from __future__ import annotations

from qgraph.gradient.expression import Expr, constant, op
from qgraph.gradient.registry import Gradient, Node, rule
from qgraph.gradient.shapes import dims, rank, reshape_like, total, unbroadcast
from qgraph.gradient.windows import Window, correlate, transposed, window


@rule("Conv")
def conv(n: Node) -> Gradient:
    x, weight, group = n.x, n.input(1), n.attribute("group", 1)
    w = window(n, dims(weight)[2:])
    return (
        transposed(n.g, weight, w, steps=dims(n.y)[2:], like=x, group=group),
        correlate(x, n.g, w, like=weight, group=group),
        _channel_sum(n),
    )


@rule("ConvTranspose")
def conv_transpose(
    n: Node,
) -> Gradient:  # the input's gradient is a Conv; the weight's exchanges x and g
    x, weight, group = n.x, n.input(1), n.attribute("group", 1)
    w = _transpose_window(n)
    gx = op.Conv(n.g, weight, group=group, kernel_shape=list(w.kernel), **w.attributes())
    return gx, correlate(n.g, x, w, like=weight, group=group), _channel_sum(n)


def _transpose_window(n: Node) -> Window:
    """The window of the Conv whose transpose this is: `output_shape` and automatic padding are converted to pads."""
    w = window(n, dims(n.input(1))[2:])
    if "output_shape" not in n.ir.attributes and n.attribute("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        return w
    lengths, results = dims(n.x)[2:], dims(n.y)[2:]
    if not all(isinstance(d, int) for d in (*lengths, *results)):
        raise n.error("auto_pad or output_shape needs static spatial sizes; fix the input size or give explicit pads")
    extra = n.attribute("output_padding", [0] * len(w.kernel))
    begin, end = [], []
    for length, result, s, extent, more in zip(lengths, results, w.strides, w.extent, extra, strict=True):
        amount = max(s * (int(length or 0) - 1) + more + extent - int(result or 0), 0)
        upper = n.attribute("auto_pad", "NOTSET") == "SAME_UPPER"
        begin.append(amount // 2 if upper else amount - amount // 2)
        end.append(amount - begin[-1])
    return Window(kernel=w.kernel, strides=w.strides, dilations=w.dilations, begin=tuple(begin), end=tuple(end))


def _channel_sum(n: Node) -> Expr | None:
    return total(n.g, [0, *range(2, rank(n.y))], keepdims=False) if n.has(2) else None


@rule("Gemm")
def gemm(n: Node) -> Gradient:
    """y = alpha A B + beta C, where A and B may each be transposed."""
    a, b, alpha = n.input(0), n.input(1), n.attribute("alpha", 1.0)
    swap_a, swap_b = n.attribute("transA", 0), n.attribute("transB", 0)
    ga = _product(b, n.g, alpha, swap_b, 1) if swap_a else _product(n.g, b, alpha, 0, 1 - swap_b)
    gb = _product(n.g, a, alpha, 1, swap_a) if swap_b else _product(a, n.g, alpha, 1 - swap_a, 0)
    if not n.has(2):
        return ga, gb
    beta = n.attribute("beta", 1.0)
    gc = unbroadcast(n.g, dims(n.y), n.input(2))
    return ga, gb, gc if beta == 1.0 else gc * beta


def _product(a: Expr, b: Expr, alpha: float, swap_a: int, swap_b: int) -> Expr:
    return op.Gemm(a, b, alpha=alpha, transA=swap_a, transB=swap_b)


@rule("MatMul")
def matmul(n: Node) -> Gradient:
    """G Bᵀ and Aᵀ G, summed over broadcast stacks; a vector is a matrix with one row (left) or column (right)."""
    a, b, g = n.input(0), n.input(1), n.g
    a_dims, b_dims, stack = dims(a), dims(b), dims(n.y)
    if rank(b) == 1:
        stack, b_dims, g = (*stack, 1), (*b_dims, 1), op.Unsqueeze(g, constant([-1]))
    if rank(a) == 1:
        stack, a_dims, g = (*stack[:-1], 1, stack[-1]), (1, *a_dims), op.Unsqueeze(g, constant([-2]))
    left = op.Unsqueeze(a, constant([0])) if rank(a) == 1 else a
    right = op.Unsqueeze(b, constant([-1])) if rank(b) == 1 else b
    ga = op.MatMul(g, _swap_last(right, len(b_dims)))
    gb = op.MatMul(_swap_last(left, len(a_dims)), g)
    return (
        _to_operand(ga, (*stack[:-2], *a_dims[-2:]), a),
        _to_operand(gb, (*stack[:-2], *b_dims[-2:]), b),
    )


def _swap_last(x: Expr, ndim: int) -> Expr:
    return op.Transpose(x, perm=[*range(ndim - 2), ndim - 1, ndim - 2])


def _to_operand(gradient: Expr, source: tuple[int | str | None, ...], operand: Expr) -> Expr:
    if rank(operand) > 1:
        return unbroadcast(gradient, source, operand)
    return reshape_like(total(gradient, range(len(source) - 2), keepdims=False), operand)
