"""Gradients of pooling over windows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qgraph.gradient.expression import Expr, call, constant, op
from qgraph.gradient.registry import Gradient, Node, rule
from qgraph.gradient.shapes import dims, full, rank, reshape_like, shape
from qgraph.gradient.windows import Window, transposed, window


@rule("AveragePool")
def average_pool(n: Node) -> Gradient:
    """Every window gives each of its elements an equal share; channels are pooled alike, so each is an image."""
    w = window(n, ())
    share = n.g / _elements(n, w)
    if all(isinstance(d, int) for d in (*dims(n.x)[2:], *dims(n.y)[2:])) and _covers(n, w):
        return op.Expand(share, shape(n.x))
    kernel = constant(np.ones((1, 1, *w.kernel), n.x.dtype.numpy()))
    images = op.Reshape(share, op.Concat(constant([-1, 1]), op.Shape(n.y, start=2), axis=0))
    return reshape_like(transposed(images, kernel, w, steps=dims(n.y)[2:], like=n.x), n.x)


def _covers(n: Node, w: Window) -> bool:
    """Whether a single window covers exactly the whole input."""
    return w.kernel == dims(n.x)[2:] and w.kernel == w.extent and not any((*w.begin, *w.end))


def _elements(n: Node, w: Window) -> Expr | float:
    """The number of elements that each window averages: no padding (unless it counts), and nothing beyond it."""
    ceil, padding_counts = n.attribute("ceil_mode", 0), n.attribute("count_include_pad", 0)
    if not ceil and (padding_counts or not any((*w.begin, *w.end))):
        return float(np.prod(w.kernel))
    begin, end, extent = w.begin, w.end, op.Shape(n.x, start=2)
    if padding_counts:
        extent = extent + constant([b + e for b, e in zip(begin, end, strict=True)])
        begin = end = (0,) * len(w.kernel)
    if ceil:
        end = tuple(e + s - 1 for e, s in zip(end, w.strides, strict=True))
    one = np.ones(1, n.x.dtype.numpy())
    ones = op.ConstantOfShape(op.Concat(constant([1, 1]), extent, axis=0), value=ir.tensor(one))
    kernel = constant(np.ones((1, 1, *w.kernel), one.dtype))
    counts = op.Conv(ones, kernel, **(w.attributes() | {"pads": [*begin, *end]}))
    if not ceil:
        return counts
    spatial = list(range(2, rank(n.x)))
    return op.Slice(counts, constant([0] * len(spatial)), op.Shape(n.y, start=2), constant(spatial))


@rule("MaxPool")
def max_pool(n: Node) -> Gradient:
    """Each window's gradient goes to the element that it took, whose position in the flat input MaxPool can return."""
    if n.attribute("storage_order", 0):
        attributes = {name: a.value for name, a in n.ir.attributes.items()} | {"storage_order": 0}
        positions = call("MaxPool", n.x, outputs=2, **attributes)[1]
    else:
        positions = n.forward(1)
    flat = constant([-1])
    zeros = op.Reshape(full(0.0, n.x), flat)
    g = op.ScatterElements(zeros, op.Reshape(positions, flat), op.Reshape(n.g, flat), axis=0, reduction="add")
    return reshape_like(g, n.x)
