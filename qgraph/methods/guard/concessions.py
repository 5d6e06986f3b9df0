"""Concessions: give up the clip or grid of a tensor, or the rounded weight of a layer, and make the plan without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx_ir as ir

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GLUE_OPS, GraphView
from qgraph.graph.tensors import CLIPPING_OPS, fused_output, nearest
from qgraph.methods.guard.factors import without_lost_factors
from qgraph.methods.guard.switches import Grid
from qgraph.onnxfile.edit import constant
from qgraph.plan.grids import activation_grid, weights_alone
from qgraph.plan.plan import ActivationQuant, KeptFloat, QuantPlan

How = Literal["whole range", "weights alone", "float"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concession:
    """A grid that was given up: how, and the SQNR in dB that its error alone leaves at the output it hurts most."""

    grid: Grid
    how: How
    alone_db: float
    output: str

    def __str__(self) -> str:
        said = {"whole range": "has its whole range", "weights alone": "stays floating point", "float": "stays float"}
        thing = {"weight": "weight of ", "operand": "what is read by ", "tensor": ""}[self.grid.kind]
        return (
            f"{thing}'{self.grid.name}' {said[self.how]}: its error alone leaves {self.alone_db:.1f} dB of output "
            f"'{self.output}'"
        )

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        said = {"how": self.how, "alone_db": self.alone_db, "output": self.output}
        return {"name": self.grid.name, "kind": self.grid.kind, **said}


def widened(quant: ActivationQuant, ranges: Mapping[str, tuple[float, float]]) -> ActivationQuant:
    """The grid with the same bits over the tensor's whole range; grids of a special form stay as they are."""
    if quant.tensor not in ranges or quant.rounding is not None or quant.offset or quant.channel_scale:
        return quant
    low, high = ranges[quant.tensor]
    if quant.symmetric or (low >= quant.low and high <= quant.high):
        return quant
    return activation_grid(quant.tensor, low, high, bits=quant.bits, role=quant.role)


def without_shifts(plan: QuantPlan) -> QuantPlan:
    """The plan with its biases as they are in the float network."""
    return plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=()))


def apply_concessions(
    plan: QuantPlan,
    view: GraphView,
    concessions: Collection[Concession],
    ranges: Mapping[str, tuple[float, float]],
) -> QuantPlan:
    """The plan without the grids given up, and without those that no integer kernel would use any more.

    A weight that several layers read stays float for all of them: the file would hold it twice otherwise.
    """
    how = {c.grid: c for c in concessions}
    shared = _layers_sharing([grid.name for grid in how if grid.kind == "weight"], plan, view)
    activations = []
    for quant in plan.activations:
        given = how.get(Grid("tensor", quant.tensor))
        if given is None:
            activations.append(quant)
        elif given.how == "whole range":
            activations.append(widened(quant, ranges))
    layers = tuple(
        weights_alone(layer, view.by_name[layer.name]) if Grid("operand", layer.name) in how else layer
        for layer in plan.layers
        if Grid("weight", layer.name) not in how and layer.name not in shared
    )
    floats = tuple(
        KeptFloat(
            name=c.grid.name,
            why=f"its rounded weight alone leaves {c.alone_db:.1f} dB of output '{c.output}'",
            bytes=view.by_name[c.grid.name].weight_array().nbytes,
        )
        for c in concessions
        if c.how == "float"
    )
    more = (KeptFloat(name=name, why=f"it shares the weight of '{one}'") for name, one in shared.items())
    notes = tuple(str(c) for c in concessions if c.how != "float")
    conceded = dataclasses.replace(
        plan,
        layers=layers,
        activations=tuple(activations),
        kept_float=(*plan.kept_float, *floats, *more),
        notes=(*plan.notes, *notes),
    )
    return without_lost_factors(without_islands(conceded, view), view)


def _layers_sharing(names: Collection[str], plan: QuantPlan, view: GraphView) -> dict[str, str]:
    """The other layers that read a weight of the named ones, each with the one that it shares it with."""
    weights = {view.by_name[name].weight: name for name in names}
    found = {quant.name: weights.get(view.by_name[quant.name].weight) for quant in plan.layers}
    return {name: one for name, one in found.items() if one is not None and name not in names}


def without_islands(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan without the grids of tensors that no integer kernel reads or writes, which would only cost time.

    A convolution whose result has no grid does not have an integer kernel and runs in floats.
    """
    layers = [view.by_name[quant.name] for quant in plan.layers if quant.runs == "integers"]
    kept = {a.tensor: a.tensor for a in plan.activations}
    while True:
        integer = [layer for layer in layers if nearest(layer.input, kept) and _writes_to(layer, kept)]
        nodes = {layer.node for layer in integer}
        useful = {nearest(layer.input, kept) for layer in integer}
        useful |= {tensor for tensor in kept if _is_written_in_integers(view.values[tensor], nodes, kept)}
        if useful >= kept.keys():
            names = {layer.name for layer in integer}
            return dataclasses.replace(
                plan,
                layers=tuple(
                    dataclasses.replace(q, runs="floats") if q.runs == "integers" and q.name not in names else q
                    for q in plan.layers
                ),
                activations=tuple(a for a in plan.activations if a.tensor in kept),
            )
        kept = {tensor: tensor for tensor in kept if tensor in useful}


def _writes_to(layer: Layer, kept: Collection[str]) -> bool:
    """Whether the layer's result has a grid, if its integer kernel needs one."""
    return layer.op != "Conv" or str(fused_output(layer.output).name) in kept


def _is_written_in_integers(value: ir.Value, layers: Collection[ir.Node], kept: Mapping[str, str]) -> bool:
    node = value.producer()
    if node is not None and node.op_type in CLIPPING_OPS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node in layers:
        return node is not None
    read = [v for v in node.inputs if v is not None and constant(v) is None]
    return node.op_type in GLUE_OPS and bool(read) and all(nearest(v, kept) for v in read)
