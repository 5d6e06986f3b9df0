"""The errors of differentiation."""

from __future__ import annotations

from qgraph.errors import QGraphError


class GradientError(QGraphError):
    """The requested gradient does not exist or cannot be built; the message says where and what to do.

    Example:
        >>> import onnx
        >>> from qgraph.gradient import gradients
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
        ... )
        >>> gradients(model, "y", ["x"])
        Traceback (most recent call last):
            ...
        qgraph.gradient.errors.GradientError: the loss 'y' has shape [2], ...
    """


class MissingRuleError(GradientError):
    """A node between the loss and a requested tensor has an operator without a gradient rule.

    Example:
        >>> import onnx
        >>> from qgraph.gradient import gradients
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 21]> g (float[1, 2, 4, 4] x) => (float loss)'
        ...     "{ y = LpNormalization(x) loss = ReduceSum<keepdims = 0>(y) }"
        ... )
        >>> gradients(model, "loss", ["x"], builder="portable")
        Traceback (most recent call last):
            ...
        qgraph.gradient.errors.MissingRuleError: operator LpNormalization (opset 21) of node ...
    """
