"""What a backward graph leaves out: the weight gradients of convolutions, as pairs of tensors to contract."""

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

    A convolution over one axis has a first axis of length 1 in `correlation`.

    Example:
        >>> import onnx
        >>> from qgraph.gradient import deferred_gradients
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 21]> g (float[1, 1, 9] x, float[2, 1, 3] w) => (float loss)'
        ...     "{ y = Conv(x, w) loss = ReduceSum<keepdims = 0>(y) }"
        ... )
        >>> contraction = deferred_gradients(model, "loss", ["w"]).contractions[0]
        >>> contraction.x.name, contraction.correlation.kernel
        ('x', (1, 3))
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
    """A model with its own outputs, the gradients that the graph computes, and the operands of the missing terms.

    `outputs` are those of the original model, the loss among them; `NAME_grad` is what the graph computes of a gradient
    in `wrt`; to complete it, the results of `contractions` have to be added.

    Example:
        >>> import onnx
        >>> from qgraph.gradient import deferred_gradients
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 21]> g (float[1, 1, 9] x, float[2, 1, 3] w) => (float loss)'
        ...     "{ y = Conv(x, w) loss = ReduceSum<keepdims = 0>(y) }"
        ... )
        >>> [value.name for value in deferred_gradients(model, "loss", ["w"]).outputs]
        ['loss']
    """

    model: ir.Model
    outputs: tuple[ir.Value, ...]
    wrt: tuple[ir.Value, ...]
    contractions: tuple[Contraction, ...]


def contraction_of(node: Node, dy: ir.Value | None, deferred: Collection[ir.Value]) -> Contraction | None:
    """The contraction of a convolution whose weight is among `deferred`; None if it has to stay in the graph."""
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
