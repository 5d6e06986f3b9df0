"""plan -> plan: weight grids whose products no CPU saturates.

x86-64 without VNNI multiplies bytes in pairs: two products of a uint8 and an int8 are added in 16 bits (vpmaddubsw),
which saturate at 32,767. With activation codes up to q, a pair of stored weights a, b is therefore safe where

    |max(a, 0) + max(b, 0)| q <= 32,767    and    |min(a, 0) + min(b, 0)| q <= 32,768

or, with q = 255, where no two neighbours of the same sign sum to more than 128. Neighbours are the weights that
onnxruntime's kernel places side by side: along the inputs of a matrix product, and channel by channel within one tap of
a convolution. A depthwise convolution with one filter per channel has a kernel of its own, which does not pair.

A channel that breaks the rule gets a step that is coarser by a factor below two; `--reduce-range` doubles every step.
Grids of 8 bits with zero points become symmetric first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import INTEGER_OPS, Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.plan import codes
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant

_INT16_MAX = 2**15 - 1
_ALL_CODES = 255  # of a dynamic operand, whose least and largest value have the codes 0 and 255
_STEPS = 8  # the most times a step is coarsened: rounding can move a sum of two codes by one


def without_saturation(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan with the scale of every weight channel widened until it cannot saturate 16 bits."""
    grids = plan.operand_grids

    def widen(quant: LayerQuant) -> LayerQuant:
        layer = view.by_name[quant.name]
        highest = _highest_code(layer, quant, grids)
        grouped = quant.weight.granularity.group is not None  # made for the CPU (`qgraph.plan.grouped`)
        if not highest or grouped:
            return quant
        if not (pairs_products(layer) or has_zero_points(quant.weight)):
            return quant
        return dataclasses.replace(quant, weight=_widened(layer, quant.weight, highest))

    return plan.map_layers(widen)


def largest_pair(layer: Layer, quant: LayerQuant, grids: Mapping[str, ActivationQuant]) -> int:
    """The largest sum of two stored weights that the layer's kernel cannot saturate; 0 where nothing saturates."""
    highest = _highest_code(layer, quant, grids)
    alone = quant.weight.granularity.group is not None or not (pairs_products(layer) or has_zero_points(quant.weight))
    return 0 if not highest or alone else _INT16_MAX // highest


def never_saturates(layer: Layer, quant: LayerQuant, grids: Mapping[str, ActivationQuant]) -> bool:
    """Whether no codes that the layer's grid has can saturate its kernel."""
    limit = largest_pair(layer, quant, grids)
    return not limit or 2 * _largest_code(quant.weight) <= limit


def saturated(layer: Layer, grid: WeightQuant, limit: int) -> NDArray[np.bool_]:
    """For each output channel, whether two neighbours among its codes sum to more than `limit` (`largest_pair`)."""
    pairs = largest_pairs(layer, codes.stored(codes.codes(layer.weight_array(), grid), grid))
    return np.asarray(pairs > (limit or np.inf))


def _highest_code(layer: Layer, quant: LayerQuant, grids: Mapping[str, ActivationQuant]) -> int:
    """The highest code that the layer's integer kernel reads; 0 where it has none."""
    if quant.runs == "dynamic":
        return _ALL_CODES
    operand = nearest(layer.input, grids) if quant.runs == "integers" else None
    return 0 if operand is None else operand.qmax


def pairs_products(layer: Layer) -> bool:
    """Whether the layer's integer kernel adds products in pairs."""
    if layer.op != "Conv":
        return layer.op in INTEGER_OPS
    channels, inputs = layer.weight_array().shape[:2]
    return not (inputs == 1 and channels == layer.groups)


def has_zero_points(grid: WeightQuant) -> bool:
    """Whether the kernel gets zero points from the file; then it adds products in pairs for every type of layer."""
    return not grid.symmetric and not codes.is_shifted(grid)


def largest_pairs(layer: Layer, stored: NDArray[np.integer]) -> NDArray[np.int64]:
    """For each output channel, the largest magnitude of the sum of two neighbouring codes of the same sign."""
    rows = layer.kernel_rows(stored)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    even, odd = rows[:, ::2].astype(np.int16), rows[:, 1::2]
    above = (np.maximum(even, 0) + np.maximum(odd, 0)).max(axis=1, initial=0)
    below = (np.minimum(even, 0) + np.minimum(odd, 0)).min(axis=1, initial=0)
    return np.maximum(above, -below).astype(np.int64)


def _widened(layer: Layer, grid: WeightQuant, highest: int) -> WeightQuant:
    limit = _INT16_MAX // highest
    weight = layer.weight_array()
    if 2 * _largest_code(grid) <= limit:
        return grid
    if has_zero_points(grid):
        grid = _about_zero(grid)
    scale = np.asarray(grid.scale, np.float64)
    for _ in range(_STEPS):
        pairs = largest_pairs(layer, codes.stored(codes.codes(weight, grid), grid))
        if len(scale) == 1:
            pairs = pairs.max(initial=0, keepdims=True)
        over = pairs > limit
        if not over.any():
            return grid
        scale = np.where(over, scale * np.maximum(pairs / limit, 1 + 1 / limit), scale)
        grid = dataclasses.replace(grid, scale=tuple(float(s) for s in scale.astype(np.float32)), codes="")
    return grid


def _about_zero(grid: WeightQuant) -> WeightQuant:
    """The symmetric grid that reaches as far; stored zero points would push all codes to one side."""
    reach = np.asarray([max(high - z, z - low) for z, (low, high) in zip(grid.zero_point, cycle(grid.limits))])
    half = 2.0 ** (np.asarray(grid.widths) - 1) - 1
    scale = (np.asarray(grid.scale) * reach / half).astype(np.float32)
    return dataclasses.replace(grid, symmetric=True, zero_point=(0,), scale=tuple(float(s) for s in scale), codes="")


def _largest_code(grid: WeightQuant) -> int:
    """The largest magnitude of a stored weight."""
    shifted = codes.is_shifted(grid)
    reaches = (high - low if shifted else max(-low, high) for low, high in grid.limits)
    return max(finer * reach for finer, reach in zip(codes.finer(grid), reaches, strict=True))
