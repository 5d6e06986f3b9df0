"""The entry point: from a model, a loss and names to a model that also outputs the gradients."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, TypeAlias

import onnx_ir as ir
from onnx_ir.passes import common as passes

import qgraph.gradient.rules_elementwise
import qgraph.gradient.rules_linear
import qgraph.gradient.rules_normalization
import qgraph.gradient.rules_pooling
import qgraph.gradient.rules_quantize
import qgraph.gradient.rules_reduction
import qgraph.gradient.rules_resize
import qgraph.gradient.rules_shape  # noqa: F401  (imported for the rules they register)
from qgraph.gradient import portable, training
from qgraph.gradient.deferred import Deferred
from qgraph.gradient.errors import GradientError
from qgraph.gradient.prepare import prepared
from qgraph.onnxfile.model import ModelLike

Builder: TypeAlias = Literal["portable", "training"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def builders() -> tuple[Builder, ...]:
    """Return the builders available here, the default first; "training" needs onnxruntime-training.

    Example:
        >>> from qgraph.gradient import builders
        >>> "portable" in builders()
        True
    """
    return ("portable", "training") if training.is_available() else ("portable",)


def gradient_name(name: str) -> str:
    """Return the name of the output that holds the gradient with respect to tensor `name`.

    Example:
        >>> from qgraph.gradient import gradient_name
        >>> gradient_name("input")
        'input_grad'
    """
    return f"{name}_grad"


def gradients(model: ModelLike, loss: str, wrt: Sequence[str], *, builder: Builder | None = None) -> ir.Model:
    """Differentiate `loss` with respect to every tensor named in `wrt`.

    Args:
        model: an onnx-ir model, a ModelProto, or a path; it is not changed. Opsets below 16 are raised to 16.
        loss: a tensor of one element, an output of the model or an inner tensor.
        wrt: names of float inputs, initializers or inner tensors.
        builder: "portable" writes the backward pass in standard operators; "training" uses onnxruntime-training, whose
            result runs only there, and never by default: it takes three times as long (ResNet-20).

    Returns:
        A model with the outputs of `model`, and then dL/dw, `gradient_name(w)`, for every w in `wrt`.

    Raises:
        GradientError: When a name is unknown or not a float tensor, the loss has more than one element or does not
            depend on a requested tensor, a node cannot be differentiated, or the builder is not installed.
        MissingRuleError: When a node's operator has no rule.

    Example:
        >>> import onnx
        >>> from qgraph.gradient import gradients
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float loss)'
        ...     "{ square = Mul(x, x) loss = ReduceSum<keepdims = 0>(square) }"
        ... )
        >>> [output.name for output in gradients(model, "loss", ["x"], builder="portable").graph.outputs]
        ['loss', 'x_grad']
    """
    chosen = builder or "portable"
    if chosen not in ("portable", "training"):
        raise GradientError(f"unknown gradient builder {chosen!r}: choose 'portable' or 'training'")
    net, source, targets = _request(model, loss, wrt)
    if chosen == "training":
        return training.with_gradients(net, source, targets)
    results = portable.append_gradients(net, source, targets)
    for value, result in zip(targets, results, strict=True):
        net.graph.outputs.append(_named(net.graph, result, value))
    passes.RemoveUnusedNodesPass()(net)
    return net


def deferred_gradients(model: ModelLike, loss: str, wrt: Sequence[str]) -> Deferred:
    """Do as `gradients` with the portable builder, but leave weight gradients of convolutions to `Contraction`s.

    A weight is deferred if it is in `wrt` itself, feeds convolutions over one or two axes, and depends on nothing else
    in `wrt`. `Backward` runs the result.

    Raises:
        GradientError: As `gradients`.
        MissingRuleError: As `gradients`.

    Example:
        >>> import onnx
        >>> from qgraph.gradient import deferred_gradients
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 21]> g (float[1, 1, 4, 4] x, float[2, 1, 3, 3] w) => (float loss)'
        ...     "{ y = Conv(x, w) loss = ReduceSum<keepdims = 0>(y) }"
        ... )
        >>> [contraction.weight.name for contraction in deferred_gradients(model, "loss", ["w"]).contractions]
        ['w']
    """
    net, source, targets = _request(model, loss, wrt)
    chosen = {value for value in targets if _is_leaf(value, targets, net.graph)}
    results, contractions = portable.append_operands(net, source, targets, deferred=chosen)
    given = dict.fromkeys((*net.graph.outputs, source))
    outputs = dict(given)
    contracted = {c.weight for c in contractions}
    for value, result in zip(targets, results, strict=True):
        if result is not None or value not in contracted:
            outputs[_named(net.graph, portable.existing(result, value, source), value)] = None
    for contraction in contractions:
        outputs |= {v: None for v in contraction.operands if not v.is_graph_input()}
    net.graph.outputs[:] = list(outputs)
    passes.RemoveUnusedNodesPass()(net)
    return Deferred(model=net, outputs=tuple(given), wrt=tuple(targets), contractions=tuple(contractions))


def _is_leaf(value: ir.Value, targets: Sequence[ir.Value], graph: ir.Graph) -> bool:
    """Whether no other target's gradient needs this one's."""
    others = [v for v in targets if v is not value]
    return value.producer() is None or value not in portable.downstream(graph, others)


def _request(model: ModelLike, loss: str, wrt: Sequence[str]) -> tuple[ir.Model, ir.Value, list[ir.Value]]:
    """A copy of the model to work on, the loss, and the tensors to differentiate with respect to."""
    net = prepared(model)
    values = ir.convenience.create_value_mapping(net.graph)
    source = _scalar(values, loss)
    targets = [_float_tensor(values, name) for name in dict.fromkeys(wrt)]
    if not targets:
        raise GradientError("no tensor to differentiate for: give at least one name in `wrt`")
    for name in map(gradient_name, wrt):
        if name in values:
            raise GradientError(f"the model already has a tensor named '{name}'; rename it")
    return net, source, targets


def _named(graph: ir.Graph, result: ir.Value, value: ir.Value) -> ir.Value:
    """`result` under its public name, through a node of its own, so that other uses of the value do not matter."""
    node = ir.node("Identity", [result], name=f"grad/{value.name}")
    output = node.outputs[0]
    output.name, output.type, output.shape = gradient_name(str(value.name)), value.type, value.shape
    graph.append(node)
    return output


def _find(values: dict[str, ir.Value], name: str) -> ir.Value:
    if name in values:
        return values[name]
    close = difflib.get_close_matches(name, values, n=3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise GradientError(f"the model has no tensor named '{name}'{hint}")


def _scalar(values: dict[str, ir.Value], name: str) -> ir.Value:
    value = _float_tensor(values, name)
    if value.shape is not None and any(d != 1 for d in value.shape):
        raise GradientError(
            f"the loss '{name}' has shape {value.shape}, but it must be a single number: reduce it first (ReduceSum)"
        )
    return value


def _float_tensor(values: dict[str, ir.Value], name: str) -> ir.Value:
    value = _find(values, name)
    if value.dtype not in _FLOATS:
        raise GradientError(f"'{name}' is of type {value.dtype}, but only float tensors have gradients")
    return value
