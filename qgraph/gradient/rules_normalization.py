"""Gradients of normalizations; BatchNormalization is in inference form, a fixed scale and shift per channel."""

from __future__ import annotations

from collections.abc import Sequence

from qgraph.gradient.expression import Expr, constant, op
from qgraph.gradient.registry import Gradient, Node, rule
from qgraph.gradient.shapes import count, dims, rank, reshape_like, total


@rule("BatchNormalization")
def batch_normalization(n: Node) -> Gradient:
    """y = (x - mean) r scale + bias with r = 1 / sqrt(var + eps), all per channel."""
    if n.attribute("training_mode", 0) or len(n.ir.outputs) > 1:
        raise n.error("it is in training mode; export the model in evaluation mode (model.eval() in torch)")
    ndim, variance = rank(n.x), n.input(4)
    scale, mean = _per_channel(n.input(1), ndim), _per_channel(n.input(3), ndim)
    r = _per_channel(1.0 / op.Sqrt(variance + n.attribute("epsilon", 1e-5)), ndim)
    others = [a for a in range(ndim) if a != 1]
    normalised = (n.x - mean) * r
    d_scale = total(n.g * normalised, others, keepdims=False)
    d_bias = total(n.g, others, keepdims=False)
    flat_r, flat_scale = op.Reshape(r, constant([-1])), n.input(1)
    d_mean = -(d_bias * flat_scale * flat_r)
    d_variance = d_scale * flat_scale * (flat_r * flat_r) * -0.5
    return n.g * (scale * r), d_scale, d_bias, d_mean, d_variance


@rule("LayerNormalization")
def layer_normalization(n: Node) -> Gradient:
    """y = xhat scale + bias with xhat = (x - mean) r over the last axes."""
    ndim = rank(n.x)
    first = n.attribute("axis", -1) % ndim
    normalised = (n.x - n.forward(1)) * n.forward(2)
    gx = _centred(n.g * n.input(1), normalised, n.forward(2), list(range(first, ndim)), n.x)
    d_scale = _to_parameter(n.g * normalised, n.input(1), ndim)
    return gx, d_scale, _to_parameter(n.g, n.input(2), ndim) if n.has(2) else None


@rule("InstanceNormalization")
def instance_normalization(n: Node) -> Gradient:
    """As LayerNormalization, over the spatial axes of every image and channel."""
    ndim = rank(n.x)
    axes = list(range(2, ndim))
    centred = n.x - total(n.x, axes) / count(n.x, axes)
    variance = total(centred * centred, axes) / count(n.x, axes)
    r = 1.0 / op.Sqrt(variance + n.attribute("epsilon", 1e-5))
    normalised = centred * r
    scale = _per_channel(n.input(1), ndim)
    others = [0, *axes]
    return (
        _centred(n.g * scale, normalised, r, axes, n.x),
        total(n.g * normalised, others, keepdims=False),
        total(n.g, others, keepdims=False),
    )


def _per_channel(parameter: Expr, ndim: int) -> Expr:
    """A vector over axis 1, shaped to broadcast with a tensor of `ndim` axes."""
    return op.Reshape(parameter, constant([-1] + [1] * (ndim - 2)))


def _centred(g: Expr, normalised: Expr, r: Expr, axes: Sequence[int], x: Expr) -> Expr:
    """dL/dx of xhat = (x - mean) r: r (g - mean(g) - xhat mean(g xhat)), with means over `axes`."""
    size = count(x, axes)
    return r * (g - total(g, axes) / size - normalised * (total(g * normalised, axes) / size))


def _to_parameter(g: Expr, parameter: Expr, ndim: int) -> Expr:
    """Sum over the axes along which the parameter, shaped like the normalised axes or 1, was broadcast."""
    ones = [ndim - rank(parameter) + i for i, d in enumerate(dims(parameter)) if d == 1]
    axes = [*range(ndim - rank(parameter)), *ones]
    return reshape_like(total(g, axes), parameter)
