"""Sums over the taps of a layer's weight, for any layer and any number of groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import Layer


def output_sums(layer: Layer, weight: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum_k weight_ck mean_k per output channel c, for any layer and any number of groups."""
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
