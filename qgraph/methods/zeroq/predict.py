"""Sensitivity in closed form: the effect of rounding a layer's weights on the outputs, without running the network.

    Omega_i(k) ~ sum_c G_c sigma_c^2 e(k) sum_j v_j

over output channels c and operands j of layer i: G_c is the gain from the channel to the outputs and v_j the variance
of an operand (`qgraph.observe.propagation`), sigma_c^2 is the variance of the channel's weights, and e(k) the least
expected error of a k-bit grid for a Gaussian prior of variance 1 (`qmath.exact_error`). Whole layers may look Laplacian
because their channels differ in sigma; a single channel is nearly Gaussian, and has too few weights to reach far into
the tails.

The result is the power of the outputs' error relative to that of the outputs. Where outputs are compared by a
divergence, the two differ by a factor that is about the same for all layers, so that both rank layers alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache

import numpy as np

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.methods.zeroq.sensitivity import Sensitivity
from qgraph.observe.propagation import Floats, Flow, Moments, flow, resized, squared_taps


def predict(table: Sensitivity, view: GraphView, known: Mapping[str, Moments]) -> Sensitivity:
    """The table with closed forms filled in; `known` are the moments of BatchNormalization outputs."""
    flows = flow(view, known)
    rows = []
    for row in table.layers:
        layer = view.by_name[row.name]
        reach = _reach(layer, layer.weight_array().astype(np.float64), flows)
        rows.append(dataclasses.replace(row, predicted=tuple(reach * unit_error(bits) for bits in row.bits)))
    return dataclasses.replace(table, layers=tuple(rows))


@cache
def unit_error(bits: int) -> float:
    """The least expected squared error of a symmetric grid that includes zero, for Gaussian weights of variance 1."""
    prior = qmath.Gaussian(loc=0.0, scale=1.0)
    clip = float(qmath.prior_clip(prior, bits, exact=True, grid="midtread"))
    return float(qmath.exact_error(prior, qmath.midtread_levels(clip, bits)))


def _reach(layer: Layer, weight: Floats, flows: Flow) -> float:
    """The power of the outputs' error relative to theirs if every weight has an error of its channel's sigma."""
    operand, gain = flows.moments.get(str(layer.input.name)), flows.gains.get(str(layer.output.name))
    if operand is None or gain is None or layer.weight_only:
        return 0.0
    taps = squared_taps(layer, np.ones_like(weight))
    groups, outputs, inputs = taps.shape
    variance = resized(operand.variance, groups * inputs, spread=True).reshape(groups, inputs)
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.output_axis)
    spread = resized(weight.var(axis=others), groups * outputs, spread=True)
    return float(np.sum(resized(gain, groups * outputs) * np.einsum("goi,gi->go", taps, variance).reshape(-1) * spread))
