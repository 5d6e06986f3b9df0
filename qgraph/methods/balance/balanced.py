"""plan -> plan: move the outlier channels of what dynamic layers read into their weights (`qmath.balance_channels`).

Layers that read one tensor have the same factors, so that it is still quantized once. In the file the tensor is divided
by them in one Mul before it is quantized; a channel that is left out is multiplied with its weights in floats.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.observe.statistics import Observations
from qgraph.plan.dynamic import DYNAMIC_BITS
from qgraph.plan.grids import spanned
from qgraph.plan.plan import LayerQuant, QuantPlan

_WORTH = 0.9  # of the noise that must be left at most for the Mul to pay


def balanced(plan: QuantPlan, view: GraphView, observed: Observations) -> QuantPlan:
    """The plan with factors for the operands of dynamic layers, where they lower the predicted noise.

    The grids of the weights are spanned anew; methods that clip weights come afterwards.
    """
    groups: dict[tuple[str, int], list[LayerQuant]] = {}
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        if quant.runs == "dynamic" and _takes_factors(layer, quant):
            groups.setdefault(layer.operand_channels, []).append(quant)
    factors: dict[str, tuple[float, ...]] = {}
    for quants in groups.values():
        found = _factors([view.by_name[q.name] for q in quants], quants, observed)
        if found is not None and found.noise < _WORTH * found.plain_noise:
            scale = tuple(float(f) for f in found.factors.astype(np.float32))
            factors |= {quant.name: scale for quant in quants}

    def change(quant: LayerQuant) -> LayerQuant:
        if quant.name not in factors:
            return quant
        grid = dataclasses.replace(quant.weight, input_scale=factors[quant.name])
        return dataclasses.replace(quant, weight=spanned(view.by_name[quant.name].weight_array(), grid))

    return plan.map_layers(change)


def _takes_factors(layer: Layer, quant: LayerQuant) -> bool:
    """Whether rows of the weight have factors of their own: of a matrix with a scale or a unit per output channel."""
    return (
        layer.has_integer_kernel
        and layer.owns_weight
        and len(layer.weight_array().shape) == 2
        and (quant.weight.granularity.per_channel or bool(quant.weight.unit))
    )


def _factors(layers: list[Layer], quants: list[LayerQuant], observed: Observations) -> qmath.Balance | None:
    channels = observed.operand(layers[0]).channels
    if channels is None or not np.size(channels.mean):
        return None
    weight = np.concatenate([_by_input(layer) for layer in layers], axis=1)
    bits = min(quant.weight.bits for quant in quants)
    return qmath.balance_channels(
        channels.min, channels.max, channels.variance, weight, bits=DYNAMIC_BITS, weight_bits=bits
    )


def _by_input(layer: Layer) -> NDArray[np.float32]:
    """The weight as inputs x outputs."""
    weight = layer.weight_array()
    return weight.T if layer.output_axis == 0 else weight
