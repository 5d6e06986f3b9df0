"""The mean error that rounded weights make in what a layer computes, in closed form (ACIQ, Eq. 13)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sums import output_sums
from qgraph.plan import codes as weights
from qgraph.plan.plan import LayerQuant


def expected_shift(layer: Layer, quant: LayerQuant, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """E[W x - W^q x] per output channel, given the operand's mean per input channel; ignores zero padding."""
    weight = layer.weight_array()
    difference = weight.astype(np.float64) - weights.quantized(weight, quant.weight)
    return output_sums(layer, difference, mean)
