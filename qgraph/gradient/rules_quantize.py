"""Straight-through estimators: rounding counts as the identity, saturation does not.

QuantizeLinear and DequantizeLinear have a rule each; the gradient of the integer codes between them is a float tensor.
For a pair with scale s and zero point z this gives LSQ's gradients, with the mask taken before rounding (LSQ+, Eq. 3
and 4)::

    dL/dx = g          where qmin <= x/s + z <= qmax, else 0
    dL/ds = g (q - z - x/s), and g (q - z) where it saturates
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qgraph.gradient.expression import Expr, constant, op
from qgraph.gradient.registry import Gradient, Node, rule
from qgraph.gradient.rules_elementwise import keep
from qgraph.gradient.shapes import dims, rank, reshape_like, total


@rule("Round")
def round_(n: Node) -> Gradient:
    return n.g


@rule("QuantizeLinear")
def quantize_linear(n: Node) -> Gradient:
    scale = _along_channels(n, n.input(1))
    position = n.x / scale
    code = position + _along_channels(n, op.Cast(n.input(2), to=int(n.x.dtype))) if n.has(2) else position
    low, high = _range(n.outputs[0].dtype)
    inside = keep(op.And(code >= low, code <= high), n.g)
    g = inside / scale
    return g, _per_scale(n, -(g * position))


@rule("DequantizeLinear")
def dequantize_linear(n: Node) -> Gradient:
    scale, codes = _along_channels(n, n.input(1)), op.Cast(n.x, to=int(n.y.dtype))
    if n.has(2):
        codes = codes - _along_channels(n, op.Cast(n.input(2), to=int(n.y.dtype)))
    return n.g * scale, _per_scale(n, n.g * codes)


def _range(dtype: ir.DataType) -> tuple[float, float]:
    name = dtype.name
    if not name.startswith(("INT", "UINT")):
        raise ValueError(f"{name} is not an integer type")
    bits = int(name.removeprefix("U").removeprefix("INT"))
    return (0.0, float(2**bits - 1)) if name.startswith("U") else (-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1))


def _axis(n: Node) -> int:
    return int(n.attribute("axis", 1)) % max(rank(n.x), 1)


def _per_channel(n: Node) -> bool:
    return dims(n.input(1)) not in ((), (1,))


def _along_channels(n: Node, parameter: Expr) -> Expr:
    """A scale or zero point shaped to broadcast with the data: one for all, or one per channel."""
    if n.attribute("block_size", 0):
        raise n.error("blocked quantization has no rule; use one scale per tensor or per channel")
    if not _per_channel(n):
        return parameter
    shape = np.ones(rank(n.x), np.int64)
    shape[_axis(n)] = -1
    return op.Reshape(parameter, constant(shape))


def _per_scale(n: Node, gradient: Expr) -> Expr:
    """The gradient summed over all elements that share a scale."""
    axes = [a for a in range(rank(n.x)) if not _per_channel(n) or a != _axis(n)]
    return reshape_like(total(gradient, axes, keepdims=False), n.input(1))
