"""What a backward graph leaves to others: the weight gradients of convolutions, as pairs of tensors to contract."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from qgraph.gradient.contraction import Correlation
from qgraph.gradient.registry import Node
from qgraph.gradient.shapes import dims
from qgraph.gradient.windows import window


@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """A term of dL/d`weight`: the correlation of a convolution's input `x` with dL/dy, `dy`, over images and positions.

    Convolutions over one axis have a first axis of length 1 in `correlation`.
    """

    weight: ir.Value
    x: ir.Value
    dy: ir.Value
    correlation: Correlation

    @property
    def operands(self) -> tuple[ir.Value, ir.Value]:
        return self.x, self.dy


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """A model that outputs what it did (`outputs`, the loss among them), what it computes of the gradients for `wrt`
    (`NAME_grad`, where it does), and the operands of `contractions`, which have to be added."""

    model: ir.Model
    outputs: tuple[ir.Value, ...]
    wrt: tuple[ir.Value, ...]
    contractions: tuple[Contraction, ...]


def contraction_of(node: Node, dy: ir.Value | None, deferred: Collection[ir.Value]) -> Contraction | None:
    """The contraction of a convolution whose weight is among `deferred`; None where it has to stay in the graph."""
    x, weight = (*node.ir.inputs, None, None)[:2]
    if node.op != "Conv" or node.ir.domain or x is None or weight is None or dy is None or weight not in deferred:
        return None
    kernel = dims(node.input(1))[2:]
    known = len(kernel) in (1, 2) and all(isinstance(k, int) for k in kernel)
    if not known or x is weight or weight.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    w, fill = window(node, kernel), (2 - len(kernel)) * (1,)
    correlation = Correlation(
        kernel=_pair(fill + w.kernel),
        strides=_pair(fill + w.strides),
        dilations=_pair(fill + w.dilations),
        begin=_pair((0,) * len(fill) + w.begin),
        group=node.attribute("group", 1),
    )
    return Contraction(weight=weight, x=x, dy=dy, correlation=correlation)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second
