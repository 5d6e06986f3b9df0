"""Which layers and tensors of a model are quantized: the read-only view that every method uses.

*Glue* is an operator with an integer kernel in onnxruntime (Add, Mul, Concat, pooling) between quantized layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import onnx_ir as ir

from qgraph.errors import ModelError, UsageError, hint
from qgraph.graph.already import likely_tool, quantized_operators
from qgraph.graph.layers import HALF, LAYER_OPS, RECURRENT_OPS, Layer, present, weight_index
from qgraph.graph.tensors import CLIPPING_OPS, fused_output, is_transparent, moved_from, sign_sources
from qgraph.graph.walk import ancestors, descendants, owners, paths, sources, walk, with_bodies
from qgraph.graph.weight_only import weight_only_layers
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qgraph.running.wording import option

GLUE_OPS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"})
SHAPE_OPS = frozenset({"Shape", "Size"})  # read no values


@dataclass(frozen=True, eq=False)
class GraphView:
    """The layers of a normalised model and the tensors between them."""

    model: Model

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that can be quantized together with their operands, in graph order."""
        return self._split[0]

    @property
    def weight_only(self) -> tuple[Layer, ...]:
        """The layers of which only the weight can be quantized, outer graphs first."""
        return self._weight_only[0]

    @property
    def observed(self) -> tuple[Layer, ...]:
        """The layers whose operands are observed: those of the main graph, and those in bodies."""
        return (*self.layers, *(layer for layer in self.weight_only if layer.is_observed))

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes of the main graph, and behind them those of bodies."""
        return tuple(node for graph in with_bodies(self.model.graph) for node in graph)

    @property
    def skipped(self) -> dict[str, str]:
        """Nodes that would be layers but cannot be quantized, with the reason."""
        return self._split[1] | self._weight_only[1]

    @cached_property
    def paths(self) -> dict[ir.Node, str]:
        """The name of every node; inside a body, after the names of what contains it."""
        return paths(self.model.graph)

    @cached_property
    def _split(self) -> tuple[tuple[Layer, ...], dict[str, str]]:
        found, skipped = [], {}
        for node in self.model.graph:
            if node.op_type in LAYER_OPS and node.domain == "":
                index, why = weight_index(node)
                if why:
                    skipped[str(node.name)] = why
                elif node.inputs[index].dtype not in HALF:  # type: ignore[union-attr]
                    found.append(Layer(name=str(node.name), op=node.op_type, node=node, weight_index=index))
        return tuple(found), skipped

    @cached_property
    def _weight_only(self) -> tuple[tuple[Layer, ...], dict[str, str]]:
        found, skipped = weight_only_layers(self.paths, self.model.graph)
        return tuple(found), skipped

    @cached_property
    def unfolded(self) -> dict[str, str]:
        """BatchNormalizations that remain separate operators, with the reason."""
        return {node.name: node.why for node in self.model.unchanged if node.op == "BatchNormalization"}

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in (*self.layers, *self.weight_only)}

    @cached_property
    def non_negative(self) -> dict[str, bool]:
        """Whether the graph guarantees that a tensor is not negative, for every tensor that can be quantized."""
        return {site.tensor: site.non_negative for site in self.activation_sites(self.observed)}

    @cached_property
    def values(self) -> dict[str, ir.Value]:
        return {str(name): value for name, value in ir.convenience.create_value_mapping(self.model.graph).items()}

    @cached_property
    def edge_layers(self) -> frozenset[str]:
        """Names of first layers (fed by a graph input) and last layers (no layer after them)."""
        fed = set(self.model.graph.inputs)
        first = {name for name, layer in self.by_name.items() if self.root(layer.input) in fed}
        last = {name for name, layer in self.by_name.items() if self._ahead.keys().isdisjoint(self.around(layer))}
        return frozenset(first | last)

    def around(self, layer: Layer) -> list[ir.Node]:
        """The node of a layer, followed by those whose bodies contain it, innermost first."""
        found = [layer.node]
        while (owner := self._owners.get(found[-1].graph)) is not None:  # type: ignore[arg-type]
            found.append(owner[0])
        return found

    @cached_property
    def _owners(self) -> dict[ir.Graph, tuple[ir.Node, str]]:
        return owners(self.model.graph)

    @cached_property
    def tail(self) -> tuple[ir.Node, ...]:
        """Operators after the last layers that compute (box decoding, softmax, sorting): they stay float."""
        layers = {self.around(layer)[-1] for layer in self.by_name.values()}
        last = descendants(v for node in layers for v in node.outputs).keys() - self._ahead.keys() - layers
        return tuple(n for n in self.model.graph if n in last and _computes(n))

    @cached_property
    def _ahead(self) -> dict[ir.Node, None]:
        """The nodes that some layer depends on."""
        return ancestors(v for layer in self.by_name.values() for v in layer.node.inputs if v is not None)

    @cached_property
    def _roots(self) -> dict[ir.Value, ir.Value]:
        """`root` of every result of a transparent operator."""
        roots: dict[ir.Value, ir.Value] = {}
        for node in ir.traversal.RecursiveGraphIterator(self.model.graph):
            if is_transparent(node):
                moved = present(node.inputs[0])
                roots |= dict.fromkeys(node.outputs, roots.get(moved, moved))
        return roots

    def root(self, value: ir.Value) -> ir.Value:
        """The tensor whose grid `value` shares, in the model as it was when the view was first used."""
        return self._roots.get(value, value)

    @cached_property
    def _never_negative(self) -> set[ir.Value]:
        """All results of nodes for which `is_non_negative` holds."""
        known: set[ir.Value] = set()
        for node in self.nodes:
            for value in node.outputs:
                sources = sign_sources(value)
                if sources is not None and all(v in known or sign_sources(v) == [] for v in sources):
                    known.add(value)
        return known

    def _origins(self, apart: AbstractSet[str]) -> dict[ir.Value, ir.Value]:
        """The tensor whose grid each result of a transparent operator shares: the nearest `apart`, or the root."""
        origins: dict[ir.Value, ir.Value] = {}
        for node in self.nodes:
            for value in node.outputs:
                moved = moved_from(value)
                if moved is not None:
                    origins[value] = value if value.name in apart else origins.get(moved, moved)
        return origins

    def activation_sites(
        self, layers: Sequence[Layer], apart: AbstractSet[str] = frozenset(), loose: AbstractSet[str] = frozenset()
    ) -> tuple[ActivationSite, ...]:
        """Where activations are quantized when `layers` run on integers: operands, and tensors kept in integers.

        Operands that are `apart` do not share the grid of the tensor that they were moved from; `loose` tensors are not
        kept in integers between layers.
        """
        origins = self._origins(apart)
        inputs = (layer.input for layer in layers if layer.has_integer_kernel)
        operands = dict.fromkeys(origins.get(value, value) for value in inputs)
        kept = {v: None for v in self._kept_tensors(layers, operands, origins) if v.name not in loose}
        nodes = {layer.node for layer in layers}
        order = dict.fromkeys((*operands, *kept))
        return tuple(
            ActivationSite(
                tensor=str(value.name),
                operand=value in operands,
                shared=value in kept and any(use not in nodes for use in _consumers(value)),
                non_negative=value in self._never_negative,
            )
            for value in order
        )

    def _kept_tensors(
        self, layers: Sequence[Layer], operands: Mapping[ir.Value, None], origins: Mapping[ir.Value, ir.Value]
    ) -> dict[ir.Value, None]:
        """Outputs of convolutions (QLinearConv writes integers), and glue whose inputs are all on a grid beside it."""
        nodes = {layer.node for layer in layers if layer.has_integer_kernel}
        feeding = sources((v for node in nodes for v in node.inputs if v is not None), _keeps_integers)
        kept: dict[ir.Value, None] = {}
        for node in self.nodes:
            if node.op_type in GLUE_OPS and node not in nodes and node.domain == "":
                inputs = [origins.get(v, v) for v in node.inputs if v is not None and constant(v) is None]
                here = all((v in operands or v in kept) and v.graph is node.graph for v in inputs)
                on_grid = here and not _has_tensor_constant(node)
                if inputs and on_grid and node.outputs[0] in feeding:
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
    """The nodes that read the tensor, looking through transparent operators; None stands for a graph output."""
    found: set[ir.Node | None] = set()

    def moved(value: ir.Value) -> Iterator[ir.Value]:
        if value.is_graph_output():
            found.add(None)
        for use in value.uses():
            if is_transparent(use.node) and use.idx == 0 and use.node.graph is value.graph:
                yield use.node.outputs[0]
            elif use.node.op_type not in SHAPE_OPS:
                found.add(use.node)

    walk([value], moved)
    return found


def _keeps_integers(node: ir.Node) -> bool:
    """Whether a tensor on a grid stays in integers on its way through the node."""
    return node.op_type in GLUE_OPS | CLIPPING_OPS or is_transparent(node)


def _computes(node: ir.Node) -> bool:
    """Whether the node does more than move, clip or read the shape of values."""
    moves = is_transparent(node) or node.op_type in CLIPPING_OPS | SHAPE_OPS | {"Gather", "Concat", "Cast", "Split"}
    return not moves


def _has_tensor_constant(node: ir.Node) -> bool:
    return any(constant(v) is not None for v in node.inputs if v is not None)


def _check_not_quantized(view: GraphView, chosen: Sequence[Layer]) -> None:
    """Report a model that is already quantized: an error if nothing is left to quantize, otherwise a warning."""
    found = quantized_operators(view.model.ir_model)
    if not found:
        return
    tool = likely_tool(view.model.ir_model)
    operators = ", ".join(f"{count} {op}" for op, count in found.items())
    said = f"{view.model.source} is already quantized{f', apparently by {tool}' if tool else ''} ({operators})"
    if not chosen:
        raise ModelError(
            f"{said}, and has no float layer left: quantize the float model that it was made from; "
            f"qgraph inspect --fused shows what runs on integers, and qgraph compare FLOAT.onnx this.onnx what it lost"
        )
    warnings.warn(f"{said}: {len(chosen)} layers that are still float are quantized on top of that", stacklevel=2)


def choose_layers(
    view: GraphView, keep: Sequence[str], *, weight_only: bool = True
) -> tuple[list[Layer], dict[str, str]]:
    """The layers to quantize, and the reason for each that stays in floating point; `keep` are name patterns.

    Without `weight_only`, layers of which only the weight can be quantized stay as well.

    Raises `UsageError` for a pattern that matches nothing, `ModelError` when no layer is left.
    """
    layers = list(view.by_name.values())
    kept = dict(view.skipped)
    for pattern in keep:
        matched = [layer for layer in layers if any(fnmatchcase(name, pattern) for name in _names(view, layer))]
        if not matched:
            raise UsageError(f"{option('keep')}: '{pattern}' matches no layer{hint(pattern, list(view.by_name))}")
        for layer in matched:
            kept[layer.name] = f"asked for by name: {pattern}"
    if not weight_only:
        kept |= {
            layer.name: "recurrent layers, tables and layers in bodies are not trained" for layer in view.weight_only
        }
    chosen = [layer for layer in layers if layer.name not in kept]
    _check_not_quantized(view, chosen)
    if not chosen:
        reasons = "; ".join(f"'{name}': {why}" for name, why in list(kept.items())[:3])
        raise ModelError(
            f"{view.model.source} has no layer to quantize (Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN with a "
            f"constant weight)" + (f"; left out are {reasons}" if reasons else "")
        )
    return chosen, kept


def _names(view: GraphView, layer: Layer) -> tuple[str, ...]:
    """The name of a layer; for a weight of a recurrent layer, also that of its node."""
    return (layer.name, view.paths[layer.node]) if layer.op in RECURRENT_OPS else (layer.name,)
