"""Symbolic tensors, with which gradient rules compute.

An `Expr` is a tensor of the graph, a constant, or an output of a `Call` of a standard ONNX operator. Rules combine them
with `+ - * /`, comparisons and `op.NAME(...)`; nothing enters the graph before `qgraph.gradient.emit` writes what is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Operand: TypeAlias = "Expr | float | Sequence[int] | NDArray[Any] | None"

_BOOLEAN = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or"})
_INTEGER = frozenset({"Shape", "Size", "NonZero"})


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One application of an operator; `outputs` is the number of outputs that rules may use."""

    op: str
    inputs: tuple[Expr | None, ...]
    attributes: dict[str, Any]
    outputs: int


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """A symbolic tensor: a value of the graph, a constant array, or output `index` of a call.

    Example:
        >>> from qgraph.gradient import constant, op
        >>> x = constant([1.0, 2.0])
        >>> (x * x + 1.0).source.op, op.Relu(x).dtype.name
        ('Add', 'DOUBLE')
    """

    source: ir.Value | NDArray[Any] | Call
    dtype: ir.DataType
    index: int = 0

    def __add__(self, other: Operand) -> Expr:
        return op.Add(self, other)

    def __radd__(self, other: Operand) -> Expr:
        return op.Add(other, self)

    def __sub__(self, other: Operand) -> Expr:
        return op.Sub(self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return op.Sub(other, self)

    def __mul__(self, other: Operand) -> Expr:
        return op.Mul(self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return op.Mul(other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return op.Div(self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return op.Div(other, self)

    def __neg__(self) -> Expr:
        return op.Neg(self)

    def __gt__(self, other: Operand) -> Expr:
        return op.Greater(self, other)

    def __ge__(self, other: Operand) -> Expr:
        return op.GreaterOrEqual(self, other)

    def __lt__(self, other: Operand) -> Expr:
        return op.Less(self, other)

    def __le__(self, other: Operand) -> Expr:
        return op.LessOrEqual(self, other)


def tensor(value: ir.Value) -> Expr:
    """Return the symbolic form of a value of the graph.

    Example:
        >>> import onnx_ir
        >>> from qgraph.gradient import tensor
        >>> tensor(onnx_ir.Value(name="x")).dtype.name
        'FLOAT'
    """
    return Expr(value, value.dtype or ir.DataType.FLOAT)


def constant(array: Sequence[int] | NDArray[Any] | float, dtype: ir.DataType | None = None) -> Expr:
    """Return a constant; integers without a dtype are int64, as ONNX requires for axes and shapes.

    Example:
        >>> from qgraph.gradient import constant
        >>> constant([0, 1]).dtype.name
        'INT64'
    """
    data = np.asarray(array, None if dtype is None else dtype.numpy())
    if dtype is None and data.size == 0:
        data = data.astype(np.int64)
    return Expr(data, ir.DataType.from_numpy(data.dtype))


def call(name: str, *inputs: Operand, outputs: int = 1, **attributes: Any) -> tuple[Expr, ...]:
    """Apply an operator with several outputs. Python numbers take the dtype of the tensors beside them."""
    operands = _operands(inputs)
    made = Call(name, operands, {k: v for k, v in attributes.items() if v is not None}, outputs)
    return tuple(Expr(made, _dtype(made, i), i) for i in range(outputs))


class _Operators:
    """`op.Conv(x, w, strides=[2, 2])`: the single output of an ONNX operator applied to symbolic tensors."""

    def __getattr__(self, name: str) -> Callable[..., Expr]:
        return lambda *inputs, **attributes: call(name, *inputs, **attributes)[0]

    __getitem__ = __getattr__


op = _Operators()


def dot(a: Expr, b: Expr) -> Expr:
    """The dot product of two tensors, faster than a product and a sum as it writes no intermediate."""
    row = constant([1, -1])
    product = op.Gemm(op.Reshape(a, row), op.Reshape(b, row), transB=1)
    return op.Reshape(product, constant(np.array([], np.int64)))


def _operands(inputs: Sequence[Operand]) -> tuple[Expr | None, ...]:
    typed = next((e.dtype for e in inputs if isinstance(e, Expr) and e.dtype != ir.DataType.BOOL), None)

    def convert(operand: Operand) -> Expr | None:
        if operand is None or isinstance(operand, Expr):
            return operand
        return constant(operand, typed if isinstance(operand, int | float) else None)

    return tuple(convert(operand) for operand in inputs)


def operand_dtype(operands: Sequence[Expr | None]) -> ir.DataType:
    """The type of the first operand that is not a condition."""
    return next(e.dtype for e in operands if e is not None and e.dtype != ir.DataType.BOOL)


def _dtype(made: Call, index: int) -> ir.DataType:
    if made.op in _BOOLEAN:
        return ir.DataType.BOOL
    if made.op in _INTEGER or (made.op == "MaxPool" and index == 1):
        return ir.DataType.INT64
    if made.op == "Cast":
        return ir.DataType(made.attributes["to"])
    if made.op == "ConstantOfShape":
        value: ir.Tensor = made.attributes["value"]
        return value.dtype
    chosen = made.inputs[1] if made.op in ("Where", "CastLike") else made.inputs[0]
    if chosen is None:
        raise TypeError(f"{made.op} has no operand to take a type from")
    return chosen.dtype
