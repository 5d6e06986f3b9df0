"""Our own rewrites in `normalise`: identities are bypassed; constants, BatchNormalization and biases are folded.

Each returns the nodes that it looked for but left unchanged, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.onnxfile.edit import add_initializer, constant, name_of
from qgraph.running import sessions as runtime

Declined: TypeAlias = list[tuple[ir.Node, str]]
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FOLD_ALWAYS = 1024  # bytes: so small a constant is stored rather than computed


def bypass_identities(model: ir.Model) -> Declined:
    """Let the readers of y = Identity(x), and of y = Dropout(x) in inference, read x.

    A node that produces a graph output stays, so that the output keeps its name.
    """
    declined: Declined = []
    for node in [n for n in model.graph if n.op_type in ("Identity", "Dropout") and n.domain == ""]:
        source, why = node.inputs[0], _why_not_bypassed(node)
        if why or source is None:
            declined.append((node, why or "it reads nothing"))
        else:
            node.outputs[0].replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
    return declined


def _why_not_bypassed(node: ir.Node) -> str:
    """Why the node is more than its input under another name ('' if it is not)."""
    if node.outputs[0].is_graph_output():
        return f"it makes the output '{node.outputs[0].name}', which keeps its name"
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return f"'{node.inputs[2].name}' decides whether it trains"
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "its mask is read"
    return ""


def fold_constants(model: ir.Model) -> Declined:
    """Replace what can be computed from initializers alone by its value.

    Results are folded if they are small, or no larger than what they are computed from (weights behind Identity, Cast,
    Reshape or Transpose; shape arithmetic), or if a layer takes them as its weight; never others, which would make the
    file grow (Expand, Tile, ConstantOfShape).
    """
    _resolve_cast_like(model.graph)
    foldable = constant_nodes(model.graph)
    if not foldable:
        return []
    inner = set(foldable)
    frontier = [v for n in foldable for v in n.outputs if _leaves(v, inner)]
    values = runtime.evaluate_constants(model, frontier)
    declined: Declined = []
    for value, array in zip(frontier, values, strict=True):
        producer, why = value.producer(), _why_not_stored(value, array)
        if array is not None and not why:
            _replace_by_initializer(model.graph, value, array)
        elif producer is not None:
            declined.append((producer, why))
    return declined


def _why_not_stored(value: ir.Value, array: NDArray[Any] | None) -> str:
    """Why a value that depends on constants alone is computed at run time ('' if it may be stored)."""
    if array is None:
        return "onnxruntime cannot compute it in advance"
    if value.is_graph_output():
        return f"it makes the output '{value.name}'"
    if array.nbytes <= _FOLD_ALWAYS or _is_weight(value):
        return ""
    source = _source_bytes(value, enough=array.nbytes)
    if array.nbytes > source:
        return f"stored, it would take {array.nbytes:,} bytes; what it is computed from takes {source:,}"
    return ""


def _resolve_cast_like(graph: ir.Graph) -> None:
    """CastLike(x, y) -> Cast(x) to the type of y; torch's dynamo exporter writes CastLike into constants (opset 15)."""
    for node in [n for n in graph if n.op_type == "CastLike" and n.domain == ""]:
        like = node.inputs[1]
        if like is not None and like.dtype is not None:
            cast = ir.node("Cast", [node.inputs[0]], attributes={"to": like.dtype.value})
            graph.insert_before(node, cast)
            old, new = node.outputs[0], cast.outputs[0]
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            new.name, new.type, new.shape = old.name, old.type, old.shape


def fold_batch_normalization(model: ir.Model) -> Declined:
    """W' = W gamma / sqrt(var + eps) per output channel, b' = (b - mean) gamma / sqrt(var + eps) + beta.

    Pattern: Conv | ConvTranspose | Gemm | MatMul -> BatchNormalization in inference form, where the layer's output has
    no other consumer and all parameters are constant. Other BatchNormalizations are left unchanged.
    """
    declined: Declined = []
    every = (n for graph in (model.graph, *model.graph.subgraphs()) for n in graph)
    for bn in [n for n in every if n.op_type == "BatchNormalization" and n.domain == ""]:
        if _is_training(bn):
            raise ModelError(
                f"BatchNormalization '{bn.name}' is in training mode: its output depends on the batch; "
                f"export the model in evaluation mode (model.eval() in torch)"
            )
        layer = bn.inputs[0].producer() if bn.inputs[0] is not None else None
        why = _why_not_folded(layer, bn)
        if layer is None or why:
            declined.append((bn, why))
        else:
            _fold(layer, bn)
    return declined


def fuse_matrix_product_bias(model: ir.Model) -> Declined:
    """MatMul(x, W) + b -> Gemm(x, W, b), for floats x of rank 2 and one number of b per column.

    tf2onnx and scikit-learn write dense layers in this form. Needs shapes. onnxruntime does the same when it loads a
    float model; in a quantized one it separates the pair from its quantizers and then computes it in floating point.
    """
    declined: Declined = []
    for add in [n for n in model.graph if n.op_type == "Add" and n.domain == ""]:
        for summand, other in (add.inputs, reversed(add.inputs)):
            product, added = summand.producer() if summand is not None else None, constant(other)
            if product is None or product.op_type != "MatMul" or product.domain != "" or added is None:
                continue
            why = _why_not_fused(product, added)
            if why:
                declined.append((add, why))
            else:
                _fuse_bias(model.graph, product, add, added)
            break
    return declined


def _why_not_fused(product: ir.Node, added: NDArray[Any]) -> str:
    """Why a constant that is added to a matrix product cannot be the bias of a Gemm ('' if it can)."""
    x, weight, result = product.inputs[0], constant(product.inputs[1]), product.outputs[0]
    if len(result.uses()) != 1 or result.is_graph_output():
        return f"the result of '{name_of(product)}' is read elsewhere too"
    if weight is None or weight.ndim != 2:
        return f"the weight of '{name_of(product)}' is not a constant of two dimensions"
    if weight.dtype != np.float32:
        return f"the weight of '{name_of(product)}' is {weight.dtype}, not float32"
    if x is None or x.shape is None or len(x.shape) != 2:
        rank = "an unknown number of" if x is None or x.shape is None else str(len(x.shape))
        return f"'{name_of(product)}' reads a tensor of {rank} dimensions, and Gemm takes two"
    if added.ndim > 2 or added.size not in (1, weight.shape[1]) or (added.ndim == 2 and added.shape[0] != 1):
        return f"what is added has shape {list(added.shape)}, not one number for each of {weight.shape[1]} columns"
    return ""


def _fuse_bias(graph: ir.Graph, product: ir.Node, add: ir.Node, added: NDArray[Any]) -> None:
    columns = np.asarray(constant(product.inputs[1])).shape[1]
    bias = np.broadcast_to(added.reshape(-1), (columns,))
    taken = next(v for v in add.inputs if v is not product.outputs[0])
    stored = add_initializer(graph, f"{taken.name if taken is not None else product.name}", bias)
    gemm = ir.node("Gemm", [*product.inputs, stored], name=product.name)
    graph.insert_before(add, gemm)
    old, new = add.outputs[0], gemm.outputs[0]
    name, shape, dtype = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([add, product], safe=True)
    new.name, new.shape, new.type = name, shape, dtype


def constant_nodes(graph: ir.Graph, *, also: Iterable[ir.Value] = ()) -> list[ir.Node]:
    """The nodes that can be computed from initializers alone, and from values that are `also` known."""
    known: set[ir.Value] = {v for v in graph.initializers.values() if not v.is_graph_input()} | set(also)
    nodes = []
    for node in graph:
        pure = node.domain == "" and not any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        )
        random = node.op_type.startswith(("Random", "Multinomial", "Bernoulli"))
        inputs = [v for v in node.inputs if v is not None]
        if pure and not random and inputs and all(v in known for v in inputs) and node.op_type != "DequantizeLinear":
            nodes.append(node)
            known.update(node.outputs)
    return nodes


def _leaves(value: ir.Value, inner: set[ir.Node]) -> bool:
    return bool(value.uses()) and (value.is_graph_output() or any(use.node not in inner for use in value.uses()))


def _is_weight(value: ir.Value) -> bool:
    """Whether a layer multiplies its input by the value, which will then be quantized and take less memory."""
    return any(
        use.node.op_type in LINEAR and use.node.domain == "" and (use.idx == 1 or use.node.op_type == "MatMul")
        for use in value.uses()
    )


def _source_bytes(value: ir.Value, *, enough: int) -> int:
    """Bytes of the constants that a value is computed from, counted until they reach `enough`."""
    seen: set[ir.Value] = set()
    pending, total = [value], 0
    while pending and total < enough:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        producer = current.producer()
        if producer is not None:
            pending.extend(v for v in producer.inputs if v is not None)
        elif current.const_value is not None:
            total += current.const_value.nbytes
    return total


def _replace_by_initializer(graph: ir.Graph, value: ir.Value, array: NDArray[np.generic]) -> None:
    name = value.name
    value.name = f"{name}/computed"
    constant = ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
    constant.dtype = ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(constant)
    value.replace_all_uses_with(constant)


def _is_training(bn: ir.Node) -> bool:
    mode = bn.attributes.get("training_mode")
    return (mode is not None and mode.as_int() == 1) or sum(bool(v.uses()) for v in bn.outputs[1:]) > 0


def _why_not_folded(layer: ir.Node | None, bn: ir.Node) -> str:
    """Why a BatchNormalization cannot be folded into the layer before it ('' if it can)."""
    names = ("scale", "bias", "mean", "variance")
    open_ = [name for name, v in zip(names, bn.inputs[1:5], strict=False) if constant(v) is None]
    if open_:
        return f"its {open_[0]} is not a constant"
    if layer is None:
        return (
            f"there is no layer before it: it reads '{bn.inputs[0].name if bn.inputs[0] is not None else ''}' directly"
        )
    if layer.op_type not in LINEAR or layer.domain != "" or layer.graph is not bn.graph:
        return f"it follows {layer.op_type} '{name_of(layer)}', which is not a convolution or matrix product"
    if layer.op_type == "MatMul":
        return f"it normalises axis 1, but the channels of MatMul '{name_of(layer)}' are its last axis"
    result, added = layer.outputs[0], layer.inputs[2] if len(layer.inputs) > 2 else None
    if result.is_graph_output():
        return f"the result of '{name_of(layer)}' before it is an output of the model"
    if len(result.uses()) != 1:
        return f"the result of '{name_of(layer)}' before it is read {len(result.uses())} times"
    if constant(layer.inputs[1]) is None:
        return f"the weight of '{name_of(layer)}' is not a constant"
    bias = constant(added)
    if added is not None and bias is None:
        return f"the bias of '{name_of(layer)}' is not a constant"
    if bias is not None and bias.ndim > 1 and bias.shape[0] != 1:
        return f"'{name_of(layer)}' adds {list(bias.shape)} numbers, not one per channel"
    return f"alpha or beta of '{name_of(layer)}' is not 1" if layer.op_type == "Gemm" and _gemm_is_scaled(layer) else ""


def _gemm_is_scaled(layer: ir.Node) -> bool:
    return any(name in layer.attributes and layer.attributes[name].as_float() != 1.0 for name in ("alpha", "beta"))


def output_axis(layer: ir.Node) -> int:
    """The axis of the weight for output channels."""
    if layer.op_type == "ConvTranspose":
        return 1
    if layer.op_type == "Gemm":
        trans_b = layer.attributes.get("transB")
        return 0 if trans_b is not None and trans_b.as_int() else 1
    return 0 if layer.op_type == "Conv" else -1


def _fold(layer: ir.Node, bn: ir.Node) -> None:
    graph: ir.Graph = bn.graph  # type: ignore[assignment]
    gamma, beta, mean, var = (np.asarray(constant(v), np.float64) for v in bn.inputs[1:5])
    epsilon = bn.attributes["epsilon"].as_float() if "epsilon" in bn.attributes else 1e-5
    factor = gamma / np.sqrt(var + epsilon)
    weight = np.asarray(constant(layer.inputs[1]))
    scaled = scale_output_channels(layer, weight, factor)
    old_bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 else None
    bias = (0.0 if old_bias is None else old_bias.astype(np.float64).reshape(-1)) - mean
    bias = np.broadcast_to(bias * factor + beta, factor.shape).astype(weight.dtype)

    stem = layer.inputs[1].name if layer.inputs[1] is not None else layer.name
    new_weight = add_initializer(graph, f"{stem}", scaled.astype(weight.dtype))
    bias_stem = layer.inputs[2].name if len(layer.inputs) > 2 and layer.inputs[2] is not None else f"{stem}.bias"
    new_bias = add_initializer(graph, f"{bias_stem}", bias)
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(1, new_weight)
    layer.replace_input_with(2, new_bias)
    old, result = bn.outputs[0], layer.outputs[0]
    name, shape, dtype = old.name, old.shape, old.type
    is_output = old.is_graph_output()
    old.replace_all_uses_with(result, replace_graph_outputs=is_output)
    graph.remove(bn, safe=True)
    result.name, result.shape, result.type = name, shape, dtype


def scale_output_channels(
    layer: ir.Node, weight: NDArray[np.generic], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Multiply each output channel of `weight` by `factor` (float64, one value per output channel)."""
    if layer.op_type == "ConvTranspose":  # weight: in x out/groups x ...; channel o of group g is row block g, column o
        groups = layer.attributes["group"].as_int() if "group" in layer.attributes else 1
        split = weight.reshape(groups, -1, *weight.shape[1:]).astype(np.float64)
        shape = (groups, 1, -1) + (1,) * (weight.ndim - 2)
        return (split * factor.reshape(shape)).reshape(weight.shape)
    aligned = np.moveaxis(np.broadcast_to(factor, (1,) * (weight.ndim - 1) + factor.shape), -1, output_axis(layer))
    return weight.astype(np.float64) * aligned
