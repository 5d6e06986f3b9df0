"""What a layer is, and which tensors between layers are quantized: the read-only view that every method asks.

Vocabulary:

* a *layer* is a Conv, ConvTranspose, Gemm or MatMul with a constant weight;
* an *operand* is the tensor that a layer multiplies with its weight;
* a *transparent* operator moves values without changing them (Reshape, MaxPool, Slice, ...), so that its output lies on
  the grid of its input; the *root* of a tensor is found by walking up through transparent operators;
* *glue* is an operator with an integer kernel in onnxruntime (Add, Mul, Concat, pools) between quantized layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.folding import constant, output_axis
from qgraph.model import Model

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INTEGER_OPS = ("Conv", "Gemm", "MatMul")  # onnxruntime has integer kernels for these on the CPU
GLUE_OPS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"})
CLIPPING_OPS = frozenset({"Relu", "Clip"})
TRANSPARENT_OPS = frozenset(
    {
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Identity",
        "Dropout",
        "Pad",
    }
    | {"Resize", "DepthToSpace", "SpaceToDepth", "Expand"}
)
_NON_NEGATIVE_OPS = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Softplus", "Sqrt"})
_SHAPE_OPS = frozenset({"Shape", "Size"})  # read no values
_MONOTONE_AT_ZERO = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Concat"}
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layer:
    """One quantizable layer: its node, its weight and the axes along which its channels run."""

    name: str
    op: str
    node: ir.Node
    weight_index: int = 1

    @property
    def weight(self) -> ir.Value:
        return _present(self.node.inputs[self.weight_index])

    @property
    def input(self) -> ir.Value:
        return _present(self.node.inputs[1 - self.weight_index])

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def bias(self) -> ir.Value | None:
        """The bias input of Conv, ConvTranspose and Gemm; None where there is none."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def bias_factor(self) -> float:
        """What the bias is multiplied by: beta of Gemm."""
        return float(attribute(self.node, "beta", 1.0)) if self.op == "Gemm" else 1.0

    def weight_array(self) -> NDArray[np.float32]:
        array = constant(self.weight)
        if array is None:
            raise ValueError(f"the weight of '{self.name}' is not a constant")
        return array.astype(np.float32, copy=False)

    @property
    def output_axis(self) -> int:
        """Axis of the weight that runs over output channels (per group for ConvTranspose), non-negative."""
        rank = len(_present(self.weight.shape))
        if self.op == "MatMul" and self.weight_index == 0:
            return rank - 2
        return output_axis(self.node) % rank

    @property
    def scale_axis(self) -> int | None:
        """The axis along which the weight may have a scale per channel; None where integer kernels want one scale."""
        if self.op == "MatMul" and (self.weight_index == 0 or len(_present(self.weight.shape)) > 2):
            return None
        return self.output_axis

    @property
    def input_axis(self) -> int:
        """Axis of the operand that is summed over; may be negative."""
        if self.op in ("Conv", "ConvTranspose"):
            return 1
        if self.op == "Gemm":
            return 0 if attribute(self.node, "transA", 0) else 1
        return -2 if self.weight_index == 0 else -1

    @property
    def operand_channels(self) -> tuple[str, int]:
        """The operand's name and the axis that is summed over, non-negative where the rank is known.

        Layers may read one tensor along different axes: its statistics per channel are kept under such pairs.
        """
        shape, axis = self.input.shape, self.input_axis
        return str(self.input.name), axis % len(shape) if shape is not None and len(shape) else axis

    @property
    def result_axis(self) -> int:
        """Axis of the layer's result that runs over output channels; may be negative."""
        if self.op == "MatMul":
            return -2 if self.weight_index == 0 else -1
        return 1

    @property
    def input_channels(self) -> int:
        """How many channels of the operand are summed over, all groups together."""
        shape = self.weight_array().shape
        if self.op in ("Conv", "ConvTranspose"):
            return shape[1] * self.groups if self.op == "Conv" else shape[0]
        return shape[-1] if self.output_axis == len(shape) - 2 else shape[-2]

    @property
    def groups(self) -> int:
        return int(attribute(self.node, "group", 1)) if self.op in ("Conv", "ConvTranspose") else 1


@dataclass(frozen=True, eq=False)
class GraphView:
    """The layers of a normalised model and the tensors between them."""

    model: Model
    skipped: dict[str, str] = field(default_factory=dict)
    """Nodes that would be layers but cannot be quantized, with the reason."""

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        found = []
        for node in self.model.graph:
            if node.op_type in LAYER_OPS and node.domain == "":
                index, why = _weight_index(node)
                if why:
                    self.skipped[str(node.name)] = why
                else:
                    found.append(Layer(name=str(node.name), op=node.op_type, node=node, weight_index=index))
        for graph in self.model.graph.subgraphs():
            for node in graph:
                if node.op_type in LAYER_OPS:
                    self.skipped[str(node.name)] = "lies in the body of a control-flow operator"
        return tuple(found)

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def non_negative(self) -> dict[str, bool]:
        """Whether the graph keeps a tensor from being negative, for every tensor that can be quantized."""
        return {site.tensor: site.non_negative for site in self.activation_sites(self.layers)}

    @cached_property
    def values(self) -> dict[str, ir.Value]:
        return {str(name): value for name, value in ir.convenience.create_value_mapping(self.model.graph).items()}

    @cached_property
    def edge_layers(self) -> frozenset[str]:
        """Names of first layers (fed by a graph input) and last layers (no layer after them)."""
        first = {layer.name for layer in self.layers if root(layer.input).is_graph_input()}
        nodes = {layer.node: layer.name for layer in self.layers}
        last = {layer.name for layer in self.layers if not _reaches(layer.output, nodes)}
        return frozenset(first | last)

    @cached_property
    def tail(self) -> tuple[ir.Node, ...]:
        """Operators behind the last layers that compute (box decoding, softmax, sorting): they stay float."""
        nodes = {layer.node: layer.name for layer in self.layers}
        ahead = {node for node in self.model.graph if any(_reaches(v, nodes) for v in node.outputs)}
        behind = descendants([layer.output for layer in self.layers])
        return tuple(n for n in self.model.graph if n in behind and n not in ahead and n not in nodes and _computes(n))

    def activation_sites(self, layers: Sequence[Layer]) -> tuple[ActivationSite, ...]:
        """Where activations are quantized when `layers` are: operands, and tensors kept in integers between layers."""
        operands = dict.fromkeys(root(layer.input) for layer in layers if layer.op in INTEGER_OPS)
        kept = self._kept_tensors(layers, operands)
        nodes = {layer.node for layer in layers}
        order = dict.fromkeys((*operands, *kept))
        return tuple(
            ActivationSite(
                tensor=str(value.name),
                operand=value in operands,
                shared=value in kept and any(use not in nodes for use in _consumers(value)),
                non_negative=is_non_negative(value),
            )
            for value in order
        )

    def _kept_tensors(self, layers: Sequence[Layer], operands: Mapping[ir.Value, None]) -> dict[ir.Value, None]:
        """Outputs of convolutions (QLinearConv writes integers), and glue whose inputs are all on a grid."""
        nodes = {layer.node for layer in layers if layer.op in INTEGER_OPS}
        kept: dict[ir.Value, None] = {}
        for node in self.model.graph:
            if node.op_type in GLUE_OPS and node not in nodes and node.domain == "":
                inputs = [root(v) for v in node.inputs if v is not None and constant(v) is None]
                on_grid = all(v in operands or v in kept for v in inputs) and not _has_tensor_constant(node)
                if inputs and on_grid and _feeds_a_layer(node.outputs[0], nodes):
                    kept[fused_output(node.outputs[0])] = None
            elif node in nodes and node.op_type == "Conv":
                kept[fused_output(node.outputs[0])] = None
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationSite:
    """A tensor that is quantized: an operand of layers, a tensor kept in integers, or both."""

    tensor: str
    operand: bool
    shared: bool
    """Whether operators that are not layers read the tensor too."""
    non_negative: bool


def root(value: ir.Value) -> ir.Value:
    """The tensor whose grid `value` lies on: itself, or what it was moved from by transparent operators."""
    producer = value.producer()
    while producer is not None and is_transparent(producer):
        value = _present(producer.inputs[0])
        producer = value.producer()
    return value


def is_transparent(node: ir.Node) -> bool:
    """Whether the node only moves values (or adds zeros), so that its output needs no grid of its own."""
    if node.op_type not in TRANSPARENT_OPS or node.domain != "":
        return False
    if node.op_type == "Pad":
        fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        given = len(node.inputs) > 2 and node.inputs[2] is not None
        mode = attribute(node, "mode", "constant")
        return mode != "constant" or not given or (fill is not None and not fill.any())
    if node.op_type == "Resize":
        return bool(attribute(node, "mode", "nearest") == "nearest")
    return True


def pads(layer: Layer) -> bool:
    """Whether the layer may sum over zeros that are not of its operand, so that an offset is not folded exactly."""
    if layer.op == "Conv":
        padding = attribute(layer.node, "pads", ())
        return any(padding) or attribute(layer.node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return layer.op not in ("Gemm", "MatMul") or len(layer.weight.shape or ()) != 2


def fused_output(value: ir.Value) -> ir.Value:
    """The tensor to quantize for an operator's result: behind the Relu or Clip that onnxruntime merges into it."""
    uses = list(value.uses())
    if len(uses) == 1 and not value.is_graph_output():
        node = uses[0].node
        bounds = [v for v in node.inputs[1:] if v is not None]
        if node.op_type in CLIPPING_OPS and node.domain == "" and all(constant(v) is not None for v in bounds):
            return node.outputs[0]
    return value


def is_non_negative(value: ir.Value) -> bool:
    """Whether the graph itself guarantees value >= 0 (ReLU, sigmoid, a Clip from 0, and what keeps the sign)."""
    producer = value.producer()
    if producer is None or producer.domain != "":
        return False
    if producer.op_type in _NON_NEGATIVE_OPS:
        return True
    if producer.op_type == "Clip":
        low = constant(producer.inputs[1]) if len(producer.inputs) > 1 else None
        return low is not None and bool(low >= 0)
    if is_transparent(producer):
        return is_non_negative(_present(producer.inputs[0]))
    if producer.op_type in _MONOTONE_AT_ZERO:
        return all(is_non_negative(v) for v in producer.inputs if v is not None and constant(v) is None)
    return False


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def _consumers(value: ir.Value) -> set[ir.Node | None]:
    """Who reads the tensor, looking through transparent operators; None stands for a graph output."""
    found: set[ir.Node | None] = {None} if value.is_graph_output() else set()
    for use in value.uses():
        if is_transparent(use.node) and use.idx == 0:
            found |= _consumers(use.node.outputs[0])
        elif use.node.op_type not in _SHAPE_OPS:
            found.add(use.node)
    return found


def _feeds_a_layer(value: ir.Value, layers: set[ir.Node]) -> bool:
    """Whether a layer is reached through operators that keep integers."""
    pending, seen = [value], {value}
    while pending:
        for use in pending.pop().uses():
            node = use.node
            if node in layers:
                return True
            passes = node.op_type in GLUE_OPS | CLIPPING_OPS or is_transparent(node)
            if passes and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return False


def _reaches(value: ir.Value, nodes: dict[ir.Node, str]) -> bool:
    pending, seen = [value], {value}
    while pending:
        for use in pending.pop().uses():
            if use.node in nodes:
                return True
            fresh = [v for v in use.node.outputs if v not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return False


def descendants(values: Iterable[ir.Value]) -> set[ir.Node]:
    """All nodes that depend on any of the values."""
    found: set[ir.Node] = set()
    pending = list(values)
    while pending:
        for use in pending.pop().uses():
            if use.node not in found:
                found.add(use.node)
                pending.extend(use.node.outputs)
    return found


def _computes(node: ir.Node) -> bool:
    """Whether the node's results are more than moved, clipped or shape values."""
    moves = is_transparent(node) or node.op_type in CLIPPING_OPS | _SHAPE_OPS | {"Gather", "Concat", "Cast", "Split"}
    return not moves


def _has_tensor_constant(node: ir.Node) -> bool:
    return any(constant(v) is not None for v in node.inputs if v is not None)


def _weight_index(node: ir.Node) -> tuple[int, str]:
    """Which input is the constant weight, and why the node cannot be quantized ('' if it can)."""
    if len(node.inputs) < 2 or None in node.inputs[:2]:
        return 1, "an operand is missing"
    candidates = (1, 0) if node.op_type == "MatMul" else (1,)
    for index in candidates:
        weight = constant(node.inputs[index])
        if weight is None:
            continue
        if constant(node.inputs[1 - index]) is not None:
            return index, "both operands are constants"
        if weight.dtype != np.float32:
            return index, f"its weight is {weight.dtype}, not float32"
        if weight.ndim < 2 or weight.size == 0:
            return index, f"its weight has shape {list(weight.shape)}; at least two dimensions are needed"
        if not np.isfinite([weight.min(), weight.max()]).all():
            return index, "its weight contains NaN or infinite values"
        return index, ""
    return 1, "its weight is not a constant"


def _present(value: Any) -> Any:
    if value is None:
        raise ModelError("an operator lacks an input that it requires; export the model again")
    return value
