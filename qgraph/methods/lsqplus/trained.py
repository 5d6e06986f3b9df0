"""The trained parameters: float weights, biases, scales and offsets, as named views of one flat vector.

`absorb` (in `parameters`) takes them from a network and a plan, and `release` puts them back. Scales and offsets are
float32, as in the exported file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.methods.lsqplus.batch_norm import factor, tracked
from qgraph.methods.lsqplus.weight_quantizer import Floats, WeightGrid
from qgraph.onnxfile.edit import add_initializer, constant
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan

Kind = Literal["weight", "bias", "weight_scale", "scale", "offset", "gain", "statistic"]
_PLAIN = ("bias", "gain", "shift")  # parameters of a layer that are fed as they are
_SMALLEST = np.float32(1e-3)  # a scale does not fall below this share of its initial value


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place of a parameter in the flat vector; `unit` is the size to which its rate is relative."""

    name: str
    kind: Kind
    start: int
    shape: tuple[int, ...]
    unit: float
    factor: float = 1.0
    """LSQ's gradient scale, 1 / sqrt(count p)."""

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedGrid:
    """A learned activation grid; its `offset` is none, real-valued, or an integer number of steps."""

    tensor: str
    role: Literal["tensor", "operand"]
    bits: int
    zero_point: int
    offset: Literal["none", "real", "integer"]
    learned_offset: bool
    non_negative: bool

    @property
    def key(self) -> str:
        return f"{self.tensor}:{self.role}"

    @property
    def qmax(self) -> int:
        return 2**self.bits - 1


@dataclass(frozen=True, eq=False)
class Trained:
    """The parameters of one network: their layout, and how they feed the training graph."""

    net: Model
    plan: QuantPlan
    """The plan of the training graph: only trained grids, no corrections."""
    grids: tuple[TrainedGrid, ...]
    weights: Mapping[str, WeightGrid]
    slots: Mapping[str, Slot]
    start: Floats

    @cached_property
    def size(self) -> int:
        return len(self.start)

    def view(self, values: NDArray[np.float32], name: str) -> Floats:
        slot = self.slots[name]
        return values[slot.start : slot.stop].reshape(slot.shape)

    @cached_property
    def normalised(self) -> tuple[str, ...]:
        """The layers whose results are normalised by the batch (see `batch_norm`), by name."""
        return tuple(layer for layer in self.weights if f"gain:{layer}" in self.slots)

    def track(self, values: Floats, batch: Mapping[str, Floats]) -> None:
        """Update the running statistics by those of a batch, in place."""
        for name in self.of_batches:
            view = self.view(values, name)
            view[...] = tracked(view, batch[name])

    @cached_property
    def of_batches(self) -> tuple[str, ...]:
        """The names of the batch statistics."""
        return tuple(slot.name for slot in self.slots.values() if slot.kind == "statistic")

    def _plain(self, layer: str) -> list[str]:
        return [name for kind in _PLAIN if (name := f"{kind}:{layer}") in self.slots]

    def _folded(self, values: Floats, layer: str) -> Floats:
        return factor(self.view(values, f"gain:{layer}"), self.view(values, f"variance:{layer}"))

    def per_value(self, attribute: Literal["unit", "factor"]) -> Floats:
        """An attribute of the slots, repeated for every value of the flat vector."""
        spread = np.empty(self.size, np.float32)
        for slot in self.slots.values():
            spread[slot.start : slot.stop] = getattr(slot, attribute)
        return spread

    def of_kind(self, *kinds: Kind) -> NDArray[np.bool_]:
        chosen = np.zeros(self.size, np.bool_)
        for slot in self.slots.values():
            chosen[slot.start : slot.stop] = slot.kind in kinds
        return chosen

    def feeds(self, values: Floats) -> dict[str, NDArray[np.generic]]:
        """The inputs of the training graph for these parameters."""
        found: dict[str, NDArray[np.generic]] = {}
        for layer, grid in self.weights.items():
            found[f"weight:{layer}"] = grid.quantize(
                self.view(values, f"weight:{layer}"), self.view(values, f"weight_scale:{layer}")
            )
            found |= {name: self.view(values, name) for name in self._plain(layer)}
        for grid_ in self.grids:
            scale, zero_point, offset = self.grid_values(values, grid_)
            moved = offset if grid_.offset == "real" else np.float32(0.0)
            found[f"scale:{grid_.key}"] = np.asarray(scale)
            found[f"zero_point:{grid_.key}"] = np.asarray(zero_point)
            found[f"low:{grid_.key}"] = np.asarray(moved - scale * np.float32(zero_point))
            found[f"high:{grid_.key}"] = np.asarray(moved + scale * np.float32(grid_.qmax - int(zero_point)))
            if grid_.offset != "none":
                found[f"offset:{grid_.key}"] = np.asarray(offset)
        return found

    def grid_values(self, values: Floats, grid: TrainedGrid) -> tuple[np.float32, np.uint8, np.float32]:
        """Scale, zero point and real offset; an integer offset is a zero point of -offset / scale."""
        scale = np.float32(values[self.slots[f"scale:{grid.key}"].start])
        if grid.offset == "none":
            return scale, np.uint8(grid.zero_point), np.float32(0.0)
        offset = np.float32(values[self.slots[f"offset:{grid.key}"].start])
        if grid.offset == "real":
            return scale, np.uint8(grid.zero_point), offset
        return scale, np.uint8(np.clip(grid.zero_point - np.rint(offset / scale), 0, grid.qmax)), np.float32(0.0)

    def gradient(self, values: Floats, found: Mapping[str, Floats]) -> Floats:
        """The flat gradient from those of the graph's inputs, before LSQ's gradient scales."""
        flat = np.zeros(self.size, np.float32)
        for layer, grid in self.weights.items():
            weight, scale = (self.view(values, f"{kind}:{layer}") for kind in ("weight", "weight_scale"))
            by_weight, by_scale = grid.gradients(found[f"weight:{layer}"], weight, scale)
            self.view(flat, f"weight:{layer}")[...] = by_weight
            self.view(flat, f"weight_scale:{layer}")[...] = by_scale
            for name in self._plain(layer):
                self.view(flat, name)[...] = found[name]
        for grid_ in self.grids:
            scale_gradient = found[f"scale:{grid_.key}"]
            if grid_.offset != "none":
                outside = found[f"offset:{grid_.key}"]
                if grid_.learned_offset:
                    self.view(flat, f"offset:{grid_.key}")[...] = outside
                if grid_.offset == "integer":  # the zero point that stands for the offset counts from code 0 (or n)
                    steps = int(self.grid_values(values, grid_)[1]) - grid_.zero_point
                    scale_gradient = scale_gradient + steps * outside
            self.view(flat, f"scale:{grid_.key}")[...] = scale_gradient
        return flat

    def constrain(self, values: Floats) -> None:
        """Keep every scale and gain positive, in place."""
        for slot in self.slots.values():
            if slot.kind in ("scale", "weight_scale", "gain"):
                part = slice(slot.start, slot.stop)
                np.maximum(values[part], _SMALLEST * self.start[part], out=values[part])

    def release(self, values: Floats) -> tuple[Model, QuantPlan]:
        """The trained float network and the plan for it, with the weight grids and the learned activation grids."""
        net = self.net.ir_model.clone()
        view = GraphView(dataclasses.replace(self.net, ir_model=net))
        for layer in view.layers:
            if layer.name in self.normalised:
                k = self._folded(values, layer.name)
                gap = np.asarray(constant(layer.bias)) - self.view(values, f"mean:{layer.name}")
                weight = self.view(values, f"weight:{layer.name}")
                put(net.graph, layer, layer.weight_index, weight * k.reshape(-1, *[1] * (weight.ndim - 1)))
                put(net.graph, layer, 2, k * gap + self.view(values, f"shift:{layer.name}"))
            elif layer.name in self.weights:
                put(net.graph, layer, layer.weight_index, self.view(values, f"weight:{layer.name}"))
                if f"bias:{layer.name}" in self.slots:
                    put(net.graph, layer, 2, self.view(values, f"bias:{layer.name}"))
        trained = normalise(dataclasses.replace(self.net, ir_model=net, digest=""))
        grids = {(g.tensor, g.role): g for g in self.grids}

        def learned_layer(quant: LayerQuant) -> LayerQuant:
            scales = self.view(values, f"weight_scale:{quant.name}").reshape(-1)
            if quant.name in self.normalised:
                scales = scales * self._folded(values, quant.name)
            scale = tuple(float(s) for s in scales)
            return dataclasses.replace(quant, weight=dataclasses.replace(quant.weight, scale=scale))

        def learned(a: ActivationQuant) -> ActivationQuant:
            scale, zero_point, offset = self.grid_values(values, grids[a.tensor, a.role])
            return dataclasses.replace(a, scale=float(scale), zero_point=int(zero_point), offset=float(offset))

        plan = self.plan.map_layers(learned_layer).map_activations(learned)
        return trained, dataclasses.replace(plan, model=trained.digest)


def put(graph: ir.Graph, layer: Layer, index: int, array: NDArray[np.floating]) -> None:
    """Replace input `index` of the layer by `array`, under the name of the old input."""
    old = layer.node.inputs[index]
    if old is None:
        raise ValueError(f"input {index} of '{layer.name}' is missing")
    name = str(old.name)
    if len(old.uses()) == 1 and name in graph.initializers and not old.is_graph_output():
        del graph.initializers[name]
    layer.node.replace_input_with(index, add_initializer(graph, name, array.astype(np.float32)))
