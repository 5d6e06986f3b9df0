"""The plan during a search: the layers frozen so far, and the rest as in the starting plan."""

from __future__ import annotations

import dataclasses

from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.graph.walk import ancestors
from qgraph.methods.qrater.bench import Candidate
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan


class Assembly:
    """The layers of `base` and their operands; a tensor that several layers read is searched with the first of them.

    Layers of which the weight alone is quantized are not searched: they are frozen from the beginning.
    """

    def __init__(self, base: QuantPlan, view: GraphView) -> None:
        self.base = base
        self._nodes = {layer.node: layer.name for layer in view.layers}
        self._values = view.values
        grids = base.operand_grids
        self._site: dict[str, str] = {}
        self._owner: dict[str, str] = {}
        for quant in base.layers:
            layer = view.by_name[quant.name]
            grid = nearest(layer.input, grids)
            if layer.has_integer_kernel and grid is not None:
                self._site[quant.name] = grid.tensor
                self._owner.setdefault(grid.tensor, quant.name)
        self._grids = {tensor: grids[tensor] for tensor in self._owner}
        searched = {(grid.tensor, grid.role) for grid in self._grids.values()}
        self._stored = [a for a in base.activations if (a.tensor, a.role) not in searched]
        self._layers = {quant.name: quant for quant in base.layers}
        self.searched = tuple(quant for quant in base.layers if not view.by_name[quant.name].weight_only)
        self._frozen = dict.fromkeys(quant.name for quant in base.layers if quant not in self.searched)
        self._made: dict[str, set[str]] = {}

    def has_operand(self, name: str) -> bool:
        """Whether the grid of the layer's operand is searched with the layer."""
        return self._owner.get(self._site.get(name, "")) == name

    def current(self, name: str) -> Candidate:
        """The layer as found so far, or as in the starting plan."""
        quant = self._layers[name]
        grid = self._grids.get(self._site.get(name, ""))
        return Candidate(weight=quant.weight, operand=grid, shift=quant.bias_shift)

    def freeze(self, name: str, found: Candidate) -> None:
        self._layers[name] = dataclasses.replace(self._layers[name], weight=found.weight, bias_shift=found.shift)
        if self.has_operand(name) and found.operand is not None:
            self._grids[self._site[name]] = found.operand
        self._frozen[name] = None

    def without(self, name: str) -> QuantPlan:
        """The plan around the layer while it is searched: the frozen layers, and grids that depend only on them."""
        layers = tuple(self._layers[quant.name] for quant in self.base.layers if self._is_frozen(quant.name, name))
        operands = [
            dataclasses.replace(grid, role="operand")
            for tensor, grid in self._grids.items()
            if self._owner[tensor] in self._frozen
        ]
        ready = [a for a in self._stored if self._makers(a.tensor) <= self._frozen.keys() - {name}]
        return dataclasses.replace(self.base, layers=layers, activations=(*operands, *ready))

    def plan(self) -> QuantPlan:
        """The starting plan with everything found so far."""
        found = {(grid.tensor, grid.role): grid for grid in self._grids.values()}
        return dataclasses.replace(
            self.base,
            layers=tuple(self._layers[quant.name] for quant in self.base.layers),
            activations=tuple(found.get((a.tensor, a.role), a) for a in self.base.activations),
        )

    def to_json(self, name: str, found: Candidate) -> str:
        """A candidate for a layer, as a plan of that layer alone."""
        layer = dataclasses.replace(self._layers[name], weight=found.weight, bias_shift=found.shift)
        operands = () if found.operand is None else (found.operand,)
        return dataclasses.replace(self.base, layers=(layer,), activations=operands, kept_float=()).to_json()

    def _is_frozen(self, name: str, searched: str) -> bool:
        return name in self._frozen and name != searched

    def _makers(self, tensor: str) -> set[str]:
        """The layers of the plan that a tensor depends on."""
        if tensor not in self._made:
            found = ancestors([self._values[tensor]])
            self._made[tensor] = {self._nodes[node] for node in found if node in self._nodes} & self._layers.keys()
        return self._made[tensor]


def from_json(text: str) -> Candidate:
    """The candidate that `Assembly.to_json` wrote."""
    plan = QuantPlan.from_json(text, source="the checkpoints")
    layer: LayerQuant = plan.layers[0]
    operand: ActivationQuant | None = plan.activations[0] if plan.activations else None
    return Candidate(weight=layer.weight, operand=operand, shift=layer.bias_shift)
