"""Reverse-mode differentiation of ONNX graphs.

`gradients` takes a model, a scalar output and the names to differentiate with respect to, and returns a model with the
gradients as additional outputs::

    step = gradients("model.onnx", "loss", ["input", "conv1.weight"])
    onnx_ir.save(step, "step.onnx")          # outputs: ..., input_grad, conv1.weight_grad

`Backward` runs such a step, and is faster for weight gradients of convolutions, which it computes outside the graph::

    step = Backward("model.onnx", "loss", ["conv1.weight"])
    outputs, gradients = step({"input": images, "labels": labels})

New operators are added with `rule`.
"""

from qgraph.gradient.backward import Backward
from qgraph.gradient.build import Builder, builders, deferred_gradients, gradient_name, gradients
from qgraph.gradient.contraction import Correlation, weight_gradients
from qgraph.gradient.deferred import Contraction, Deferred
from qgraph.gradient.emit import append, append_all
from qgraph.gradient.errors import GradientError, MissingRuleError
from qgraph.gradient.expression import Expr, constant, op, tensor
from qgraph.gradient.registry import Gradient, Node, rule, rules
from qgraph.gradient.shapes import rank

__all__ = [
    "Backward",
    "Builder",
    "Contraction",
    "Correlation",
    "Deferred",
    "Expr",
    "Gradient",
    "GradientError",
    "MissingRuleError",
    "Node",
    "append",
    "append_all",
    "builders",
    "constant",
    "deferred_gradients",
    "gradient_name",
    "gradients",
    "op",
    "rank",
    "rule",
    "rules",
    "tensor",
    "weight_gradients",
]
