"""(network, plan) -> (network, plan): move steps per channel into weights, so that each tensor has one step to learn.

With factors r_c > 0, ReLU(y) = r ReLU(y / r): the weights that write a tensor are divided by r and those that read it
are multiplied by r, as in the exported file. The network computes the same, and the grid of the tensor has one step.
Where that is not possible, all channels get the coarsest step.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph.graph.sites import GraphView
from qgraph.lowering.places import producers
from qgraph.methods.lsqplus.trained import put
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan


def equalise(net: Model, plan: QuantPlan) -> tuple[Model, QuantPlan]:
    """An equivalent network, and a plan for it without `channel_scale` and `input_scale`."""
    if not any(grid.channel_scale for grid in plan.activations):
        return net, plan
    copy = net.ir_model.clone()
    view = GraphView(dataclasses.replace(net, ir_model=copy))
    divided = {
        name: np.asarray(grid.channel_scale, np.float64)
        for name, grid in producers(plan, view).items()
        if _behind_relu(view, grid) and _readers_agree(view, plan, grid)
    }
    absorbed = {grid.tensor for name, grid in producers(plan, view).items() if name in divided}

    def layer(quant: LayerQuant) -> LayerQuant:
        target = view.by_name[quant.name]
        if str(target.input.name) in absorbed:
            put(copy.graph, target, target.weight_index, weights.scaled(target.weight_array(), quant.weight))
        grid = dataclasses.replace(quant.weight, input_scale=())
        if quant.name not in divided:
            return dataclasses.replace(quant, weight=grid)
        factors = 1.0 / divided[quant.name]
        weight = target.weight_array()
        put(copy.graph, target, target.weight_index, weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))
        bias = constant(target.bias)
        if bias is not None:
            put(copy.graph, target, 2, bias * factors)
        scales = np.broadcast_to(np.asarray(grid.scale), factors.shape) * factors
        grid = dataclasses.replace(grid, scale=tuple(float(s) for s in scales.astype(np.float32)))
        shift = tuple(float(s) for s in np.asarray(quant.bias_shift) * factors) if quant.bias_shift else ()
        return dataclasses.replace(quant, weight=grid, bias_shift=shift)

    def activation(grid: ActivationQuant) -> ActivationQuant:
        if not grid.channel_scale:
            return grid
        coarsest = 1.0 if grid.tensor in absorbed else max(grid.channel_scale)
        scale = np.float32(grid.scale * coarsest * max(grid.channel_qmax) / grid.qmax)
        return dataclasses.replace(grid, scale=float(scale), channel_scale=(), channel_bits=())

    changed = plan.map_layers(layer).map_activations(activation)
    made = normalise(dataclasses.replace(net, ir_model=copy, digest=""))
    return made, dataclasses.replace(changed, model=made.digest)


def _behind_relu(view: GraphView, grid: ActivationQuant) -> bool:
    producer = view.values[grid.tensor].producer()
    return producer is not None and producer.op_type == "Relu"


def _readers_agree(view: GraphView, plan: QuantPlan, grid: ActivationQuant) -> bool:
    """Whether only layers whose weights contain the factors read the tensor."""
    value = view.values[grid.tensor]
    nodes = {view.by_name[q.name].node for q in plan.layers if q.weight.input_scale == grid.channel_scale}
    return not value.is_graph_output() and all(use.node in nodes for use in value.uses())
