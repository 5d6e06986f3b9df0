"""plan -> plan: undo what rounding a weight does to its norm and to the expected output.

Per output channel c of a layer with weight W, its quantized W^q and operand x (ACIQ, Eq. 12; Q-Rater, Eq. 7):

    gain_c  = ||W_c - mean W_c|| / ||W^q_c - mean W^q_c||       folded into the channel's scale
    shift_c = sum_k (W_ck - gain_c W^q_ck) E[x_k]               added to the bias

ACIQ's own mean correction adds a constant to every weight of a channel, which a symmetric integer grid cannot hold; its
effect on the output is a shift by that constant times sum_k x_k, whose expectation `shift_c` contains.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph import weights
from qgraph.graph import GraphView, Layer
from qgraph.observe import Observations
from qgraph.plan import LayerQuant, QuantPlan


def correct_norm(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """Give every weight channel its float norm back, through `gain`."""

    def correct(layer: LayerQuant) -> LayerQuant:
        weight = view.by_name[layer.name].weight_array()
        grid = dataclasses.replace(layer.weight, gain=(1.0,))
        rounded = weights.quantized(weight, grid)
        gain = np.atleast_1d(qmath.bias_correction(weight, rounded, axis=grid.axis).gain)
        gain = np.where(gain > 0, gain, 1.0)
        return dataclasses.replace(layer, weight=dataclasses.replace(grid, gain=tuple(float(g) for g in gain)))

    return plan.map_layers(correct)


def correct_shift(plan: QuantPlan, view: GraphView, observed: Observations) -> QuantPlan:
    """Shift every layer's bias by the expected change of its output, from the operand's mean per channel."""

    def correct(quant: LayerQuant) -> LayerQuant:
        layer = view.by_name[quant.name]
        channels = observed.operand(layer).channels
        if channels is None or not np.size(channels.mean):
            return quant
        shift = expected_shift(layer, quant, np.asarray(channels.mean))
        return dataclasses.replace(quant, bias_shift=tuple(float(s) for s in shift.astype(np.float32)))

    return plan.map_layers(correct)


def expected_shift(layer: Layer, quant: LayerQuant, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """E[W x - W^q x] per output channel, for an operand with this mean per input channel (zero padding left aside)."""
    weight = layer.weight_array()
    difference = weight.astype(np.float64) - weights.quantized(weight, quant.weight)
    return output_sums(layer, difference, mean)


def output_sums(layer: Layer, weight: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum_k weight_ck mean_k per output channel c, for any layer, groups included."""
    if layer.op == "Conv":
        per_input = weight.reshape(*weight.shape[:2], -1).sum(axis=2)  # out x in/groups
        grouped = per_input.reshape(layer.groups, -1, per_input.shape[1])
        return np.einsum("goi,gi->go", grouped, mean.reshape(layer.groups, -1)).reshape(-1)
    if layer.op == "ConvTranspose":
        per_input = weight.reshape(*weight.shape[:2], -1).sum(axis=2)  # in x out/groups
        strides = layer.node.attributes.get("strides")
        density = float(np.prod(strides.as_ints())) if strides is not None else 1.0  # taps that meet one output
        grouped = per_input.reshape(layer.groups, -1, per_input.shape[1])
        return np.einsum("gio,gi->go", grouped, mean.reshape(layer.groups, -1)).reshape(-1) / density
    inner = weight if layer.output_axis == weight.ndim - 2 else np.swapaxes(weight, -1, -2)  # ... x out x in
    sums: NDArray[np.float64] = inner @ mean
    return sums if sums.ndim == 1 else sums.reshape(-1, sums.shape[-1]).mean(axis=0)
