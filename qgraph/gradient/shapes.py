"""Shapes of symbolic tensors, and the reversal of broadcasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from qgraph.gradient.errors import GradientError
from qgraph.gradient.expression import Expr, constant, op

Dims: TypeAlias = "tuple[int | str | None, ...]"


def dims(x: Expr) -> Dims:
    """The dimensions of a value of the graph: numbers, names of symbolic dimensions, None if unknown."""
    value = x.source
    if isinstance(value, np.ndarray):
        return value.shape
    if not isinstance(value, ir.Value) or value.shape is None:
        name = value.name if isinstance(value, ir.Value) else value.op
        raise GradientError(
            f"the rank of '{name}' is not known, but a gradient needs it; "
            f"run shape inference, or export the model with shapes"
        )
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def rank(x: Expr) -> int:
    """Return the number of dimensions of a value of the graph.

    Raises:
        GradientError: When it is not known.

    Example:
        >>> from qgraph.gradient import constant, rank
        >>> rank(constant([[1, 2]]))
        2
    """
    return len(dims(x))


def is_static(x: Expr) -> bool:
    return all(isinstance(d, int) for d in dims(x))


def shape(x: Expr) -> Expr:
    """The shape of `x` as an int64 vector: a constant if it is known."""
    if isinstance(x.source, ir.Value) and x.source.shape is not None and is_static(x):
        return constant(np.array(dims(x), np.int64))
    return op.Shape(x)


def sizes(x: Expr, axes: Sequence[int]) -> Expr:
    """The sizes of some axes as an int64 vector."""
    known = dims(x)
    if all(isinstance(known[a], int) for a in axes):
        return constant(np.array([known[a] for a in axes], np.int64))
    return op.Gather(op.Shape(x), constant(np.array(axes, np.int64)), axis=0)


def count(x: Expr, axes: Sequence[int]) -> Expr | float:
    """The number of elements of `x` along `axes`, as a number or in the type of `x`."""
    known = [dims(x)[a] for a in axes]
    numbers = [d for d in known if isinstance(d, int)]
    if len(numbers) == len(known):
        return float(np.prod(numbers, dtype=np.int64))
    return op.Cast(op.ReduceProd(sizes(x, axes), keepdims=0), to=int(x.dtype))


def full(value: float, like: Expr, dtype: ir.DataType | None = None) -> Expr:
    """A tensor of the shape of `like` filled with `value`."""
    filler = ir.tensor(np.array([value], (dtype or like.dtype).numpy()))
    return op.ConstantOfShape(shape(like), value=filler)


def reshape_like(x: Expr, like: Expr) -> Expr:
    return op.Reshape(x, shape(like))


def total(x: Expr, axes: Sequence[int], *, keepdims: bool = True) -> Expr:
    """The sum over `axes`."""
    return op.ReduceSum(x, constant(np.array(axes, np.int64)), keepdims=int(keepdims)) if len(axes) else x


def unbroadcast(gradient: Expr, source: Dims, target: Expr) -> Expr:
    """Sum `gradient`, whose dimensions are `source`, over the axes along which `target` was broadcast."""
    goal = dims(target)
    padded: Dims = (1,) * (len(source) - len(goal)) + goal
    if any(_undecided(d, s) for d, s in zip(padded, source, strict=True)):
        return _unbroadcast_at_run_time(gradient, len(source), target)
    axes = [i for i, (d, s) in enumerate(zip(padded, source, strict=True)) if d == 1 and s != 1]
    leading = len(source) - len(goal)
    if not leading:
        return total(gradient, axes)
    summed = total(gradient, [i for i in axes if i >= leading])
    return total(summed, range(leading), keepdims=False)


def _undecided(target: int | str | None, source: int | str | None) -> bool:
    """Whether it is known only at run time if an axis was broadcast; a static size other than 1 never is."""
    return not isinstance(target, int) and (target is None or target != source)


def _unbroadcast_at_run_time(gradient: Expr, source_rank: int, target: Expr) -> Expr:
    missing = source_rank - rank(target)
    padded = op.Concat(constant([1] * missing), op.Shape(target), axis=0) if missing else op.Shape(target)
    differs = op.Not(op.Equal(padded, op.Shape(gradient)))
    axes = op.Squeeze(op.NonZero(differs), constant([0]))
    summed = op.ReduceSum(gradient, axes, keepdims=1, noop_with_empty_axes=1)
    return op.Reshape(summed, op.Shape(target))
