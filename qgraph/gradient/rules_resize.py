"""Gradient of Resize.

Interpolation is linear and works on one axis at a time, so it is determined by its effect on the identity.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qgraph.gradient.expression import Expr, constant, op
from qgraph.gradient.registry import Gradient, Node, rule
from qgraph.gradient.shapes import dims, rank, sizes


@rule("Resize", "Upsample")
def resize(n: Node) -> Gradient:
    if n.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise n.error("tf_crop_and_resize has no rule; use Slice before Resize")
    if n.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise n.error("keep_aspect_ratio_policy has no rule; give the sizes that it results in")
    g = n.g
    for axis in _resized_axes(n):
        g = _along(axis, rank(n.x), g, _interpolation(n, axis))
    return g


def _resized_axes(n: Node) -> list[int]:
    """Axes whose size changes, or may change."""
    before, after = dims(n.x), dims(n.y)
    return [a for a in range(rank(n.x)) if before[a] != after[a] or before[a] is None]


def _interpolation(n: Node, axis: int) -> Expr:
    """The matrix (output x input) of one axis: the node's own Resize applied to the columns of an identity matrix."""
    one = constant([1])
    length = sizes(n.x, [axis])
    blank = op.ConstantOfShape(op.Concat(length, length, axis=0), value=ir.tensor(np.zeros(1, n.x.dtype.numpy())))
    columns = op.Reshape(op.EyeLike(blank), op.Concat(one, length, length, one, axis=0))
    attributes = {name: a.value for name, a in n.ir.attributes.items() if name != "axes"}
    where = constant([n.attribute("axes", list(range(rank(n.x)))).index(axis)])
    if n.has(3):
        target = op.Concat(one, length, op.Gather(n.input(3), where, axis=0), one, axis=0)
        resized = op.Resize(columns, None, None, target, **attributes)
    else:
        given = n.input(2) if n.op == "Resize" else n.input(1)
        unit = constant(np.ones(1, np.float32))
        scales = op.Concat(unit, unit, op.Gather(given, where, axis=0), unit, axis=0)
        resized = op.Resize(columns, None, scales, **attributes)
    return op.Transpose(op.Squeeze(resized, constant([0, 3])))


def _along(axis: int, ndim: int, g: Expr, matrix: Expr) -> Expr:
    """Multiply the rows of `g` along `axis` by `matrix`."""
    if axis == ndim - 1:
        return op.MatMul(g, matrix)
    last = [*(a for a in range(ndim) if a != axis), axis]
    return op.Transpose(op.MatMul(op.Transpose(g, perm=last), matrix), perm=[int(i) for i in np.argsort(last)])
