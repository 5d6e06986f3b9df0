"""Which layers and tensors of a model are quantized: the read-only view that every method asks.

*Glue* is an operator with an integer kernel in onnxruntime (Add, Mul, Concat, pools) between quantized layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import onnx_ir as ir

from qgraph.errors import ModelError, UsageError, hint
from qgraph.graph.layers import INTEGER_OPS, LAYER_OPS, Layer, weight_index
from qgraph.graph.tensors import CLIPPING_OPS, fused_output, is_non_negative, is_transparent, root
from qgraph.graph.walk import descendants, reaches
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model

GLUE_OPS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"})
_SHAPE_OPS = frozenset({"Shape", "Size"})  # read no values


@dataclass(frozen=True, eq=False)
class GraphView:
    """The layers of a normalised model and the tensors between them."""

    model: Model

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What can be quantized, in graph order."""
        return self._split[0]

    @property
    def skipped(self) -> dict[str, str]:
        """Nodes that would be layers but cannot be quantized, with the reason."""
        return self._split[1]

    @cached_property
    def _split(self) -> tuple[tuple[Layer, ...], dict[str, str]]:
        found, skipped = [], {}
        for node in self.model.graph:
            if node.op_type in LAYER_OPS and node.domain == "":
                index, why = weight_index(node)
                if why:
                    skipped[str(node.name)] = why
                else:
                    found.append(Layer(name=str(node.name), op=node.op_type, node=node, weight_index=index))
        for graph in self.model.graph.subgraphs():
            for node in graph:
                if node.op_type in LAYER_OPS:
                    skipped[str(node.name)] = "lies in the body of a control-flow operator"
        return tuple(found), skipped

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
        last = {layer.name for layer in self.layers if not reaches(layer.output, nodes)}
        return frozenset(first | last)

    @cached_property
    def tail(self) -> tuple[ir.Node, ...]:
        """Operators behind the last layers that compute (box decoding, softmax, sorting): they stay float."""
        nodes = {layer.node: layer.name for layer in self.layers}
        ahead = {node for node in self.model.graph if any(reaches(v, nodes) for v in node.outputs)}
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


def _computes(node: ir.Node) -> bool:
    """Whether the node's results are more than moved, clipped or shape values."""
    moves = is_transparent(node) or node.op_type in CLIPPING_OPS | _SHAPE_OPS | {"Gather", "Concat", "Cast", "Split"}
    return not moves


def _has_tensor_constant(node: ir.Node) -> bool:
    return any(constant(v) is not None for v in node.inputs if v is not None)


def choose_layers(view: GraphView, keep: Sequence[str]) -> tuple[list[Layer], dict[str, str]]:
    """The layers to quantize, and the reason for each that is left in floating point; `keep` are patterns of names.

    Raises `UsageError` for a pattern that matches nothing, `ModelError` when no layer is left.
    """
    layers = list(view.layers)
    kept = dict(view.skipped)
    for pattern in keep:
        matched = [layer for layer in view.layers if fnmatchcase(layer.name, pattern)]
        if not matched:
            names = [layer.name for layer in view.layers]
            raise UsageError(f"--keep '{pattern}' matches no layer{hint(pattern, names)}")
        for layer in matched:
            kept[layer.name] = f"--keep {pattern}"
    chosen = [layer for layer in layers if layer.name not in kept]
    if not chosen:
        reasons = "; ".join(f"'{name}': {why}" for name, why in list(kept.items())[:3])
        raise ModelError(
            f"{view.model.source} has no layer to quantize (Conv, ConvTranspose, Gemm or MatMul with a constant "
            f"weight)" + (f"; left out are {reasons}" if reasons else "")
        )
    return chosen, kept
