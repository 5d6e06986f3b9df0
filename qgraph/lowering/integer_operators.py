"""Operators on integers as DequantizeLinear -> operator on floats -> QuantizeLinear, which compute the same.

Covers ONNX's QLinearConv and QLinearMatMul, onnxruntime's QGemm, QLinearAdd and the like, products of a
DynamicQuantizeLinear with constant weights, and the products of weights in blocks of few bits (MatMulNBits). What does
not match stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.onnxfile.edit import add_initializer, append_node, constant, take_place

Value = ir.Value | None
_RULES: dict[str, Callable[[ir.Graph, ir.Node], ir.Value | None]] = {}


def expand_integer_operators(graph: ir.Graph) -> int:
    """Replace every operator on integers that has a rule, sort the graph, and return how many were replaced."""
    replaced = 0
    for node in list(graph):
        rule = _RULES.get(node.op_type)
        result = None if rule is None else rule(graph, node)
        if result is not None:
            old = _result(node)
            take_place(graph, old, result, left="integers")
            replaced += 1
    graph.sort()
    return replaced


def _rule(*names: str) -> Callable[[Callable[[ir.Graph, ir.Node], ir.Value | None]], Any]:
    def register(function: Callable[[ir.Graph, ir.Node], ir.Value | None]) -> Any:
        for name in names:
            _RULES[name] = function
        return function

    return register


def _result(node: ir.Node) -> ir.Value:
    """What a rule replaces: the node's result, or that of the chain that scales an integer product."""
    found = _scaled(node)
    return node.outputs[0] if found is None else found[0]


@_rule("QLinearConv")
def _conv(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *rest = node.inputs
    bias = _real_bias(graph, rest[0] if rest else None, x_scale, w_scale)
    weight = _real(graph, w, w_scale, w_zero, axis=0)
    result = _op(graph, "Conv", [_real(graph, x, x_scale, x_zero), weight, bias], node)
    return _codes(graph, result, y_scale, y_zero)


@_rule("QLinearMatMul")
def _matmul(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    product = _op(graph, "MatMul", [_real(graph, a, a_scale, a_zero), _real(graph, b, b_scale, b_zero, axis=-1)], node)
    return _codes(graph, product, y_scale, y_zero)


@_rule("QGemm")
def _gemm(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    a, a_scale, a_zero, b, b_scale, b_zero, *rest = node.inputs
    axis = 0 if _attribute(node, "transB", 0) else -1
    bias = _real_bias(graph, rest[0] if rest else None, a_scale, b_scale)
    inputs = [_real(graph, a, a_scale, a_zero), _real(graph, b, b_scale, b_zero, axis=axis), bias]
    result = _op(graph, "Gemm", inputs, node)
    return _codes(graph, result, *rest[1:3]) if len(rest) > 1 and rest[1] is not None else result


@_rule("QLinearAdd", "QLinearMul")
def _binary(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (*node.inputs, None)[:8]
    sides = [_real(graph, a, a_scale, a_zero), _real(graph, b, b_scale, b_zero)]
    return _codes(graph, _op(graph, node.op_type.removeprefix("QLinear"), sides, node), y_scale, y_zero)


@_rule("QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool", "QLinearGlobalAveragePool")
def _unary(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    if _attribute(node, "channels_last", 0):
        return None
    x, x_scale, x_zero, y_scale, y_zero = (*node.inputs, None)[:5]
    real = _real(graph, x, x_scale, x_zero)
    return _codes(graph, _op(graph, node.op_type.removeprefix("QLinear"), [real], node), y_scale, y_zero)


@_rule("QLinearConcat")
def _concat(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    y_scale, y_zero, *rest = node.inputs
    parts = [_real(graph, *rest[i : i + 3]) for i in range(0, len(rest), 3)]
    return _codes(graph, _op(graph, "Concat", parts, node), y_scale, y_zero)


@_rule("MatMulInteger", "ConvInteger")
def _dynamic(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """DynamicQuantizeLinear -> product -> Cast -> Mul by the scale of the weight, as a product of floats."""
    source, scaled = node.inputs[0].producer(), _scaled(node)  # type: ignore[union-attr]
    if source is None or source.op_type != "DynamicQuantizeLinear" or scaled is None:
        return None
    zero = node.inputs[3] if len(node.inputs) > 3 else None
    convolution = node.op_type == "ConvInteger"
    weight = _real(graph, node.inputs[1], scaled[1], zero, axis=0 if convolution else -1)
    return _op(graph, "Conv" if convolution else "MatMul", [source.inputs[0], weight], node)


@_rule("DynamicQuantizeMatMul")
def _dynamic_product(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    a, b, scale, zero, bias = (*node.inputs, None, None)[:5]
    return _with_bias(graph, _op(graph, "MatMul", [a, _real(graph, b, scale, zero, axis=-1)], node), bias)


def _with_bias(graph: ir.Graph, product: ir.Value, bias: Value) -> ir.Value:
    return product if bias is None else _op(graph, "Add", [product, bias], None)


@_rule("MatMulNBits")
def _blocked(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """W[n, k] = (code - zero point) scale, one scale for each block of k; the first code is in the lowest bits."""
    packed, scale = constant(node.inputs[1]), constant(node.inputs[2])
    bits, block = _attribute(node, "bits", 4), _attribute(node, "block_size", 32)
    columns, outputs = _attribute(node, "K", 0), _attribute(node, "N", 0)
    given = [*node.inputs, None, None, None][3:6]
    if packed is None or scale is None or given[1] is not None or 8 % bits:  # groups in another order
        return None
    codes, zeros = _unpacked(packed.reshape(outputs, -1), bits), constant(given[0])
    blocks = codes.shape[1] // block
    middle: NDArray[Any] = np.full((outputs, blocks), 2 ** (bits - 1), np.uint8)
    if zeros is not None:
        packs = zeros.dtype == np.uint8 and zeros.size < outputs * blocks  # some tools write one in a byte
        middle = _unpacked(zeros.reshape(outputs, -1), bits)[:, :blocks] if packs else zeros.reshape(outputs, blocks)
    if (middle != np.rint(middle)).any():
        real = (codes.reshape(outputs, blocks, block) - middle[..., None]) * scale.reshape(outputs, blocks, 1)
        weight = add_initializer(graph, f"{node.name}.w", real.reshape(outputs, -1)[:, :columns].T.astype(np.float32))
        return _with_bias(graph, _op(graph, "MatMul", [node.inputs[0], weight], None, name=node), given[2])
    kind = ir.DataType[f"UINT{bits}"].numpy()
    arrays = (codes[:, :columns].T.astype(kind), scale.reshape(outputs, blocks).T, middle.T.astype(kind))
    parts = [add_initializer(graph, f"{node.name}.{name}", a) for name, a in zip(("q", "s", "z"), arrays, strict=True)]
    weight = append_node(graph, "DequantizeLinear", parts, {"axis": 0, "block_size": block}).outputs[0]
    return _with_bias(graph, _op(graph, "MatMul", [node.inputs[0], weight], None, name=node), given[2])


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    shifts = np.arange(0, 8, bits)
    return ((packed[:, :, None] >> shifts) & (2**bits - 1)).reshape(len(packed), -1).astype(np.uint8)


def _scaled(node: ir.Node) -> tuple[ir.Value, Value] | None:
    """The real result of an integer product, and the scale of its weight; None if it is scaled in another way."""
    if node.op_type not in ("MatMulInteger", "ConvInteger"):
        return None
    value = node.outputs[0]
    for op in ("Cast", "Mul"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != op or value.is_graph_output():
            return None
        last, value = uses[0].node, uses[0].node.outputs[0]
    factor = next((v for v in last.inputs if v is not None and v.producer() is not None), None)
    product = next((v.producer() for v in last.inputs if v is not None and _is_scale(v)), None)
    if factor is None or product is None:
        return None
    return value, next((v for v in product.inputs if v is not None and not _is_dynamic(v)), None)


def _is_scale(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Mul" and any(v is not None and _is_dynamic(v) for v in node.inputs)


def _is_dynamic(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DynamicQuantizeLinear"


def _real(graph: ir.Graph, codes: Value, scale: Value, zero: Value, *, axis: int | None = None) -> ir.Value:
    """DequantizeLinear; `axis` counts where there is more than one scale."""
    steps = None if scale is None else constant(scale)
    along = steps is not None and steps.size > 1 and axis is not None
    inputs = [codes, _scalar(graph, scale, along), *([] if zero is None else [_scalar(graph, zero, along)])]
    return append_node(graph, "DequantizeLinear", inputs, {"axis": axis} if along else {}).outputs[0]


def _codes(graph: ir.Graph, real: ir.Value, scale: Value, zero: Value) -> ir.Value:
    inputs = [real, _scalar(graph, scale, False), *([] if zero is None else [_scalar(graph, zero, False)])]
    return append_node(graph, "QuantizeLinear", inputs, {}).outputs[0]


def _scalar(graph: ir.Graph, value: Value, along: bool) -> Value:
    """A scale or zero point in the shape that Q and DQ take: no axis for a single number, one for several."""
    array = None if value is None else constant(value)
    if array is None or (array.ndim == 1) == along:
        return value
    return add_initializer(graph, f"{value.name}/flat", array.reshape(-1) if along else array.reshape(()))  # type: ignore[union-attr]


def _real_bias(graph: ir.Graph, bias: Value, x_scale: Value, w_scale: Value) -> Value:
    arrays = [None if v is None else constant(v) for v in (bias, x_scale, w_scale)]
    if any(array is None for array in arrays):
        return None
    codes, x, w = arrays
    real = (codes.astype(np.float64) * x.astype(np.float64) * w.astype(np.float64).reshape(-1)).astype(np.float32)  # type: ignore[union-attr]
    return add_initializer(graph, f"{bias.name}/real", real)  # type: ignore[union-attr]


def _op(
    graph: ir.Graph, op: str, inputs: Sequence[Value], like: ir.Node | None, *, name: ir.Node | None = None
) -> ir.Value:
    """An operator on floats with the attributes and the name of the one that it replaces."""
    kept = {} if like is None else {n: a for n, a in like.attributes.items() if n != "channels_last"}
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    node = append_node(graph, op, inputs, {})
    node.attributes.update(kept)
    owner = like or name
    if owner is not None:
        node.name, owner.name = owner.name, f"{owner.name}/integers"
    return node.outputs[0]


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    found = node.attributes.get(name)
    return default if found is None else found.value
