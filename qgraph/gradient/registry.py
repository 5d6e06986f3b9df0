"""Gradient rules: one function per operator, registered by one decorator.

A rule receives the node to differentiate and returns the derivative of the loss with respect to each of its inputs::

    @rule("Sigmoid")
    def sigmoid(n: Node) -> Gradient:
        return n.g * n.y * (1 - n.y)          # dL/dx = g y (1 - y)

It returns one expression (for the first input) or one per input, None where no gradient flows. With `broadcasts=True`
the operator broadcasts its inputs as NumPy does, and each gradient has the shape of the output; it is then summed to
the shape of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.gradient.errors import GradientError, MissingRuleError
from qgraph.gradient.expression import Expr, call, tensor
from qgraph.gradient.shapes import Dims, dims
from qgraph.running.wording import command

Gradient: TypeAlias = "Expr | Sequence[Expr | None] | None"


class Node:
    """A node being differentiated: its inputs, its first output `y`, and `g`, the derivative of the loss for `y`.

    `x` is the first input, `input(i)` any input, `attribute(name)` an attribute. Gradient rules receive it.

    Example:
        >>> import onnx_ir
        >>> from qgraph.gradient import Node, constant
        >>> scaled = onnx_ir.node("LeakyRelu", [onnx_ir.Value(name="x")], attributes={"alpha": 0.25})
        >>> Node(scaled, [constant(1.0)], 21).attribute("alpha")
        0.25
    """

    def __init__(self, node: ir.Node, output_gradients: Sequence[Expr | None], opset: int) -> None:
        self.ir = node
        self.opset = opset
        self.inputs = tuple(None if v is None else tensor(v) for v in node.inputs)
        self.outputs = tuple(tensor(v) for v in node.outputs)
        self.output_gradients = tuple(output_gradients)

    @property
    def op(self) -> str:
        return self.ir.op_type

    @property
    def x(self) -> Expr:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> Expr:
        """The first output."""
        return self.outputs[0]

    @property
    def g(self) -> Expr:
        """dL/dy of the first output."""
        gradient = self.output_gradients[0]
        if gradient is None:
            raise self.error("only its secondary outputs carry a gradient, which this rule does not handle")
        return gradient

    def has(self, index: int) -> bool:
        """Whether the optional input `index` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def shared(self, index: int) -> bool:
        """Whether input `index` has consumers other than this node."""
        value = self.ir.inputs[index]
        return value is not None and len(value.uses()) > 1

    def input(self, index: int) -> Expr:
        given = self.inputs[index] if index < len(self.inputs) else None
        if given is None:
            raise self.error(f"input {index} is missing")
        return given

    def attribute(self, name: str, default: Any = None) -> Any:
        given = self.ir.attributes.get(name)
        return default if given is None else given.value

    def constant(self, index: int) -> NDArray[Any] | None:
        """The array of input `index` if it is an initializer that callers cannot replace."""
        value = self.ir.inputs[index] if index < len(self.ir.inputs) else None
        if value is None or value.const_value is None or value.is_graph_input():
            return None
        return np.asarray(value.const_value.numpy())

    def dims(self, index: int = 0) -> Dims:
        """Static or symbolic dimensions of input `index`."""
        return dims(self.input(index))

    def forward(self, output: int) -> Expr:
        """Another output of this node, added to it if the model omits it."""
        attributes = {name: a.value for name, a in self.ir.attributes.items()}
        return call(self.op, *self.inputs, outputs=output + 1, **attributes)[output]

    def error(self, problem: str) -> GradientError:
        return GradientError(f"cannot differentiate {self.op} '{self.ir.name}': {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A registered rule, and whether its operator broadcasts."""

    function: Callable[[Node], Gradient]
    broadcasts: bool


_rules: dict[tuple[str, str], Rule] = {}


def rule(
    *operators: str, broadcasts: bool = False, domain: str = ""
) -> Callable[[Callable[[Node], Gradient]], Callable[[Node], Gradient]]:
    """Register the decorated function as the gradient of the named operators.

    `broadcasts`: the operator broadcasts its inputs, and the gradients that the function returns have the shape of the
    output. `domain` is that of the operators.

    Raises:
        ValueError: When one of them already has a rule.

    Example:
        >>> from qgraph.gradient import rule, rules
        >>> @rule("Cube", domain="example")
        ... def cube(n):
        ...     return n.g * n.x * n.x * 3.0
        >>> "example::Cube" in rules()
        True
    """

    def register(function: Callable[[Node], Gradient]) -> Callable[[Node], Gradient]:
        for operator in operators:
            if (domain, operator) in _rules:
                raise ValueError(f"operator {operator!r} of domain {domain!r} already has a gradient rule")
            _rules[domain, operator] = Rule(function=function, broadcasts=broadcasts)
        return function

    return register


def rules() -> tuple[str, ...]:
    """Return the operators that have a rule, sorted; those of other domains as `domain::operator`.

    Example:
        >>> from qgraph.gradient import rules
        >>> "Conv" in rules()
        True
    """
    return tuple(sorted(f"{domain}::{name}" if domain else name for domain, name in _rules))


def find_rule(node: ir.Node, opset: int) -> Rule:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (found := _rules.get((domain, node.op_type))) is not None:
        return found
    where = f", domain={domain!r}" if domain else ""
    raise MissingRuleError(
        f"operator {node.op_type} (opset {opset}{where}) of node '{node.name}' has no gradient rule, so that "
        f"nothing before it can be trained ({command('qgraph quantize', 'qgraph.quantize')} takes the model as it is); "
        f"to add one, write a function:\n\n"
        f"    from qgraph.gradient import rule\n\n"
        f'    @rule("{node.op_type}"{where})\n'
        f"    def gradient(n):          # n.x, n.input(i): inputs; n.y: output; n.g: dL/dy\n"
        f"        return n.g * ...      # dL/dx, or one expression per input"
    )
