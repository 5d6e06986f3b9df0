"""Round biases as integer kernels do, so that the exported file computes what was trained.

An integer kernel adds a bias to its accumulator, whose step is the operand's scale times the weight's (made finer on
export, see `accumulator_scale`). With the contribution of an offset (LSQ+, Eq. 5), the stored integer is

    n = round((b + offset sum(w)) / step)        and so        b <- n step - offset sum(w)

At few bits these steps are coarse, and an activation that crosses a threshold because of the rounding is off by a whole
step in the next layer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import Layer, pads
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.lowering.places import offset_sums
from qgraph.methods.lsqplus.trained import put
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan


def settle_biases(net: Model, plan: QuantPlan) -> tuple[Model, QuantPlan]:
    """The network with every bias on the grid of its layer's accumulator, and the plan for it."""
    copy = net.ir_model.clone()
    view = GraphView(dataclasses.replace(net, ir_model=copy))
    grids = plan.operand_grids
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        bias, operand = constant(layer.bias), nearest(layer.input, grids)
        if bias is None or operand is None or quant.weight.granularity.group is not None:
            continue
        unit = weights.accumulator_scale(quant.weight, operand).astype(np.float64)
        if unit.size in (1, bias.size):
            shift = _shift(layer, quant, operand)
            settled = np.rint((bias.reshape(-1) + shift) / unit) * unit - shift
            put(copy.graph, layer, 2, settled.reshape(bias.shape))
    made = normalise(dataclasses.replace(net, ir_model=copy, digest=""))
    return made, dataclasses.replace(plan, model=made.digest)


def _shift(layer: Layer, quant: LayerQuant, operand: ActivationQuant) -> NDArray[np.float64] | float:
    """The amount that export adds to the bias for the operand's offset."""
    if not operand.offset or pads(layer):
        return 0.0
    return offset_sums(layer, quant, operand.offset)
