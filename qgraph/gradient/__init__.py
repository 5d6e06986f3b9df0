"""Reverse-mode differentiation of ONNX graphs.

`gradients` takes a model, a scalar output and the names to differentiate for, and returns a model with the gradients as
extra outputs::

    step = gradients("model.onnx", "loss", ["input", "conv1.weight"])
    onnx_ir.save(step, "step.onnx")          # outputs: ..., input_grad, conv1.weight_grad

New operators are added with `rule`.
"""

from qgraph.gradient.build import Builder, builders, gradient_name, gradients
from qgraph.gradient.emit import append
from qgraph.gradient.errors import GradientError, MissingRuleError
from qgraph.gradient.expression import Expr, constant, op, tensor
from qgraph.gradient.registry import Gradient, Node, rule, rules
from qgraph.gradient.shapes import rank

__all__ = [
    "Builder",
    "Expr",
    "Gradient",
    "GradientError",
    "MissingRuleError",
    "Node",
    "append",
    "builders",
    "constant",
    "gradient_name",
    "gradients",
    "op",
    "rank",
    "rule",
    "rules",
    "tensor",
]
