"""Steps per channel of a tensor, which layers on both sides of it carry, where one of these layers has gone."""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph.graph.sites import GraphView
from qgraph.lowering.places import producers
from qgraph.plan.edit import refitted
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan


def without_lost_factors(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan with one step for each tensor that is no longer written and read by quantized layers alone.

    The step is the largest of the channels', so that no channel is clipped more than before; weights that carried the
    factors are fitted again.
    """
    scaled = {a.tensor for a in plan.activations if a.channel_scale}
    static = {quant.name for quant in plan.layers if quant.runs != "dynamic"}
    written = {a.tensor for a in producers(plan, view).values()}
    readers = {name: [layer.name for layer in view.layers if layer.input is view.values[name]] for name in scaled}
    whole = {name for name in scaled & written if readers[name] and static.issuperset(readers[name])}

    def with_one_step(grid: ActivationQuant) -> ActivationQuant:
        if not grid.channel_scale or grid.tensor in whole:
            return grid
        scale = float(np.float32(grid.scale * max(grid.channel_scale)))
        return dataclasses.replace(grid, scale=scale, channel_scale=(), channel_bits=())

    def fitted(quant: LayerQuant) -> LayerQuant:
        layer = view.by_name[quant.name]
        if not quant.weight.input_scale or quant.name not in static or str(layer.input.name) in whole:
            return quant
        plain = dataclasses.replace(quant, weight=dataclasses.replace(quant.weight, input_scale=()))
        return refitted(plain, layer, quant.weight.bits, before=quant.weight.bits)

    return plan.map_activations(with_one_step).map_layers(fitted)
