"""Gradients of operators that move, repeat or select elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qgraph.gradient.expression import Expr, call, constant, op
from qgraph.gradient.registry import Gradient, Node, rule
from qgraph.gradient.shapes import dims, full, rank, reshape_like, shape, sizes, total, unbroadcast


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshaped(n: Node) -> Gradient:
    return reshape_like(n.g, n.x)


@rule("Transpose")
def transpose(n: Node) -> Gradient:
    perm = n.attribute("perm", tuple(reversed(range(rank(n.x)))))
    return op.Transpose(n.g, perm=_inverse(perm))


def _inverse(perm: Sequence[int]) -> list[int]:
    return [int(i) for i in np.argsort(perm)]


@rule("Expand")
def expand(n: Node) -> Gradient:
    return unbroadcast(n.g, dims(n.y), n.x)


@rule("Concat")
def concat(n: Node) -> Gradient:
    axis = n.attribute("axis") % rank(n.y)
    inputs = [x for x in n.inputs if x is not None]
    lengths = [dims(x)[axis] for x in inputs]
    if all(isinstance(length, int) for length in lengths):
        split = constant(np.array(lengths, np.int64))
    else:
        split = op.Concat(*(sizes(x, [axis]) for x in inputs), axis=0)
    return call("Split", n.g, split, outputs=len(inputs), axis=axis)


@rule("Split")
def split(n: Node) -> Gradient:
    pairs = zip(n.output_gradients, n.outputs, strict=True)
    parts = [full(0.0, y) if g is None else g for g, y in pairs]
    return op.Concat(*parts, axis=n.attribute("axis", 0))


@rule("Tile")
def tile(n: Node) -> Gradient:  # y seen as repeats x size along every axis, summed over the repeats
    ndim = rank(n.x)
    pairs = op.Transpose(op.Concat(*(op.Unsqueeze(v, constant([0])) for v in (n.input(1), shape(n.x))), axis=0))
    unfolded = op.Reshape(n.g, op.Reshape(pairs, constant([-1])))
    return total(unfolded, range(0, 2 * ndim, 2), keepdims=False), None


@rule("Pad")
def pad(n: Node) -> Gradient:  # constant: crop the padding, which is padding by the negated amounts
    axes = n.inputs[3] if n.has(3) else None
    if n.attribute("mode", "constant") != "constant":
        return _scattered(n, n.input(1), *([None, axes] if n.has(3) else []))  # a fill may be given, but is not read
    g = op.Pad(n.g, -n.input(1), None, axes)
    if not n.has(2):
        return g
    everywhere = [total(t, range(rank(n.x)), keepdims=False) for t in (n.g, g)]
    return g, None, reshape_like(everywhere[0] - everywhere[1], n.input(2))


@rule("Slice")
def slice_(n: Node) -> Gradient:
    known = _constant_slice(n)
    return _scattered(n) if known is None else _unsliced(n, *known)


def _constant_slice(n: Node) -> tuple[list[int], list[int]] | None:
    """Start and step along every axis, if they are constants and positive."""
    starts, axes = n.constant(1), n.constant(3) if n.has(3) else None
    steps = n.constant(4) if n.has(4) else None
    if starts is None or (n.has(3) and axes is None) or (n.has(4) and steps is None):
        return None
    ndim = rank(n.x)
    first, step = [0] * ndim, [1] * ndim
    for i, start in enumerate(starts.tolist()):
        axis = i if axes is None else int(axes[i]) % ndim
        length = dims(n.x)[axis]
        step[axis] = 1 if steps is None else int(steps[i])
        if isinstance(length, int):
            start = min(max(start + length if start < 0 else start, 0), length)
        if start < 0 or step[axis] < 1:
            return None
        first[axis] = start
    return first, step


def _unsliced(n: Node, first: list[int], step: list[int]) -> Expr:
    """Insert `step - 1` zeros after every element, then zeros before and after."""
    g, length = n.g, shape(n.y)
    for axis in reversed([a for a, s in enumerate(step) if s > 1]):
        length = _times(length, [s if a == axis else 1 for a, s in enumerate(step)])
        g = op.Reshape(_apart(g, step[axis], op.Slice(length, constant([axis + 1]), constant([rank(n.x)]))), length)
    after = op.Sub(op.Sub(shape(n.x), length), constant(first))
    return op.Pad(g, op.Concat(constant(first), after, axis=0))


def _apart(g: Expr, step: int, inner: Expr) -> Expr:
    """Zeros after every row of the matrix whose rows are the axes from `inner` on: a ConvTranspose with one 1."""
    rows = op.Reshape(g, op.Concat(constant([1, 1, -1]), op.ReduceProd(inner, keepdims=1), axis=0))
    one = constant(np.ones((1, 1, 1, 1), g.dtype.numpy()))
    return op.ConvTranspose(rows, one, strides=[step, 1], output_padding=[step - 1, 0])


def _times(sizes_: Expr, factors: Sequence[int]) -> Expr:
    return op.Mul(sizes_, constant(np.array(factors, np.int64)))


@rule("DepthToSpace", "SpaceToDepth")
def blocks(n: Node) -> Gradient:
    if n.op == "SpaceToDepth":
        return op.DepthToSpace(n.g, blocksize=n.attribute("blocksize"))
    size = n.attribute("blocksize")
    gathered = op.SpaceToDepth(n.g, blocksize=size)
    if n.attribute("mode", "DCR") == "DCR":
        return gathered
    batch, height, width = (sizes(n.x, [a]) for a in (0, 2, 3))  # CRD: the channel varies slowest, not the block
    apart = op.Reshape(gathered, op.Concat(batch, constant([size * size, -1]), height, width, axis=0))
    return reshape_like(op.Transpose(apart, perm=[0, 2, 1, 3, 4]), n.x)


@rule("Gather")
def gather(n: Node) -> Gradient:
    """Add rows of the gradient to the rows of zeros that they came from, with the gathered axis moved to the front."""
    ndim, indices = rank(n.x), n.input(1)
    axis, picked = n.attribute("axis", 0) % ndim, rank(indices)
    to_front = [*range(axis, axis + picked), *range(axis), *range(axis + picked, ndim + picked - 1)]
    g = op.Transpose(n.g, perm=to_front)
    order = [axis, *(a for a in range(ndim) if a != axis)]
    zeros = op.ConstantOfShape(sizes(n.x, order), value=ir.tensor(np.zeros(1, n.x.dtype.numpy())))
    summed = op.ScatterND(zeros, op.Unsqueeze(indices, constant([-1])), g, reduction="add")
    return op.Transpose(summed, perm=_inverse(order)), None


@rule("GatherElements")
def gather_elements(n: Node) -> Gradient:
    axis = n.attribute("axis", 0)
    return op.ScatterElements(full(0.0, n.x), n.input(1), n.g, axis=axis, reduction="add"), None


@rule("GatherND")
def gather_nd(n: Node) -> Gradient:
    if n.attribute("batch_dims", 0):
        return _scattered(n)
    return op.ScatterND(full(0.0, n.x), n.input(1), n.g, reduction="add"), None


def _scattered(n: Node, *others: Expr | None) -> Expr:
    """The gradient of any operator that only moves elements: move their positions alike, and add back to those.

    `others` are the inputs after the first, if they are not the node's own.
    """
    everything = op.Size(n.x)
    positions = op.Range(constant(np.array(0)), everything, constant(np.array(1)))
    attributes = {name: a.value for name, a in n.ir.attributes.items()}
    moved = call(n.op, op.Reshape(positions, shape(n.x)), *(others or n.inputs[1:]), **attributes)[0]
    flat = constant([-1])
    zeros = op.Reshape(full(0.0, n.x), flat)
    g = op.ScatterElements(zeros, op.Reshape(moved, flat), op.Reshape(n.g, flat), axis=0, reduction="add")
    return reshape_like(g, n.x)
