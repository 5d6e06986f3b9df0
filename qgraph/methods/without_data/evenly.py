"""plan -> plan: weights whose errors cancel, and biases that make up for what is left, where there are no samples.

Rounding to nearest leaves sums of errors, which an operand with a mean multiplies. Without samples, weights of
convolutions and Gemm are rounded so that these sums nearly vanish (`qmath.round_evenly`), for the means that are
expected of operands. Biases are shifted by what is still added to the mean output, as far as it is known: behind
BatchNormalization, and by channels that are constant whatever goes in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_non_negative
from qgraph.methods.without_data.expected import Expected
from qgraph.plan import codes as weights
from qgraph.plan.expected import expected_shift
from qgraph.plan.grouped import regrouped, room_of
from qgraph.plan.plan import MAX_BITS, Even, LayerQuant, QuantPlan


def evenly(plan: QuantPlan, view: GraphView, expected: Mapping[str, Expected]) -> QuantPlan:
    """The plan with even rounding, and shifted biases, by what is expected of the operands of layers."""
    plan = plan.map_layers(lambda quant: _even(quant, view.by_name[quant.name], expected.get(quant.name)))

    def shift(quant: LayerQuant) -> LayerQuant:
        found = expected.get(quant.name)
        if found is None or not found.known.any() or quant.runs == "dynamic":
            return quant
        amount = expected_shift(view.by_name[quant.name], quant, found.known).astype(np.float32)
        return dataclasses.replace(quant, bias_shift=tuple(amount.tolist()))

    return plan.map_layers(shift)


def _even(quant: LayerQuant, layer: Layer, expected: Expected | None) -> LayerQuant:
    grid, even = quant.weight, what_cancels(layer)
    if not layer.owns_weight or grid.bits == MAX_BITS:  # what is shared is stored once; 8 bits gain nothing by guesses
        expected = None
    if not even and expected is not None and expected.likely.any():
        even = "means"
    taken = grid.rounding or grid.codes or grid.input_scale or grid.shift or grid.granularity.axis is None
    if not even or taken or quant.runs == "dynamic":
        return quant
    if grid.unit and expected is not None:
        grid = regrouped(weights.scaled(layer.weight_array(), grid), grid, expected.importance, most=room_of(grid))
    mean, spread = ((), ()) if expected is None else (_few_digits(expected.likely), _few_digits(expected.reach))
    held = dataclasses.replace(grid, even=even, gain=(1.0,), input_mean=mean, input_spread=spread)
    return dataclasses.replace(quant, weight=held)


def _few_digits(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """Four digits, which are enough for a guess."""
    return tuple(float(f"{number:.4g}") for number in numbers)


def what_cancels(layer: Layer) -> Even:
    """Which errors of a layer's weight its operand is likely to add up.

    Neighbours in a picture are alike; behind a ReLU, so are the signs of all channels.
    """
    if layer.op not in ("Conv", "Gemm") or layer.weight_only:
        return ""
    if is_non_negative(layer.input):
        return "sums"
    kernel = layer.weight_array().shape[2:]
    return "taps" if sum(size > 1 for size in kernel) > 1 else ""
