"""Grids with a step for every group of inputs of a weight, in whole multiples of one unit per channel.

A kernel that adds up integers has one scale per channel: it gets codes times multiples, in the channel's unit, and runs
as fast as without groups (`qmath.group_grids`). Layers that run in floats take the same form, which files hold in a
byte a group. Groups of a convolution run along the longest axis behind its outputs: the inputs of every tap, or the
taps of a filter that reads one channel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import qmath
from qgraph.graph.layers import TABLE_OP, Layer
from qgraph.plan.blocks import BLOCK, BLOCK_BITS, why_no_blocks
from qgraph.plan.plan import WeightQuant
from qgraph.plan.recipe import Recipe
from qgraph.plan.words import TargetCpu

PRODUCT_OPS = ("MatMul", "Gemm", TABLE_OP)
BYTES, _PAIRS = 127, 64  # the largest number of a kernel, and of one that adds two products in 16 bits
_WORTH = 4  # multiples that a kernel must have room for, or steps are too coarse to gain anything


def group_of(layer: Layer, bits: int, recipe: Recipe, most: int | None) -> int | None:
    """How many inputs of a layer share a step; None where each channel has one. `most` is the layer's `room`.

    Unasked, convolutions have groups only where they run in floats.
    """
    shape = layer.weight_array().shape
    group = recipe.group_at(bits)
    if group is None and recipe.target == "decode" and bits in BLOCK_BITS and not why_no_blocks(layer):
        group = BLOCK
    if group is None or layer.scale_axis is None or not takes_groups(layer, asked=recipe.group is not None, most=most):
        return None
    fits = most is None or _WORTH * (2**bits - 1) <= most
    return group if fits and shape[group_axis(layer)] > group else None


def takes_groups(layer: Layer, *, asked: bool, most: int | None) -> bool:
    """Whether a weight of such a layer can have groups; those of convolutions on integers only where `asked` for."""
    if layer.op == "Conv":
        return layer.shares_with_its_kind and (asked or most is None)
    return layer.op in PRODUCT_OPS and len(layer.weight_array().shape) == 2


def group_axis(layer: Layer) -> int:
    """The axis of the weight along which groups run: that of the inputs of a matrix, the longest of a convolution."""
    shape = layer.weight_array().shape
    return 1 + int(np.argmax(shape[1:])) if layer.op == "Conv" else 1 - layer.output_axis


def room(layer: Layer, target_cpu: TargetCpu, *, floats: bool) -> int | None:
    """The largest whole number that may stand for a weight of a layer; None where it runs in `floats`."""
    if layer.op == TABLE_OP:
        return BYTES
    if floats:
        return None
    return BYTES if target_cpu == "vnni" else _PAIRS


def grouped_grid(
    weight: NDArray[np.floating],
    granularity: qmath.Granularity,
    *,
    bits: int,
    symmetric: bool,
    most: int | None,
    importance: ArrayLike | None = None,
    input_scale: tuple[float, ...] = (),
) -> WeightQuant:
    """The grid with the least squared error, weighted by the `importance` of inputs; the `weight` as it is rounded."""
    lines = _Lines(weight.shape, granularity)
    found = qmath.group_grids(
        lines.of(weight),
        bits=bits,
        group=granularity.group or 1,
        axis=1,
        symmetric=symmetric,
        most=most,
        importance=None if importance is None else lines.of_inputs(np.asarray(importance)),
    )
    scale, zero = (found.multiple * found.unit).astype(np.float32), found.zero_point - 2 ** (bits - 1)
    scale, zero = lines.parameters(scale.T), lines.parameters(zero.T)
    return WeightQuant(
        bits=bits,
        scale=tuple(scale.ravel().tolist()),
        zero_point=(0,) if symmetric else tuple(zero.ravel().tolist()),
        unit=tuple(found.unit.tolist()),
        granularity=granularity,
        symmetric=symmetric,
        input_scale=input_scale,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Lines:
    """A weight as channels x inputs, with whole groups next to each other; those of convolutions end in zeros."""

    shape: tuple[int, ...]
    granularity: qmath.Granularity

    def of(self, weight: NDArray[Any]) -> NDArray[Any]:
        axis, group = self.granularity.axis or 0, self.granularity.group or 1
        if len(self.shape) == 2:
            return weight if axis == 1 else weight.T
        moved = np.moveaxis(weight, axis, -1)
        missing = -moved.shape[-1] % group
        return np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, missing)]).reshape(len(moved), -1)

    def of_inputs(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """One number for each input channel, the same for all taps."""
        if len(self.shape) == 2:
            return numbers
        rows = numbers.reshape(-1, self.shape[1], *[1] * (len(self.shape) - 2)).mean(axis=0, keepdims=True)
        return self.of(np.broadcast_to(rows, (1, *self.shape[1:])))[0]

    def parameters(self, found: NDArray[Any]) -> NDArray[Any]:
        """Parameters (channels, groups) in the order of the granularity."""
        axis = self.granularity.axis or 0
        if len(self.shape) == 2:
            return found if axis == 1 else found.T
        wanted = self.granularity.parameter_shape(self.shape)
        moved = np.moveaxis(np.empty(wanted, np.int8), axis, -1).shape
        return np.moveaxis(found.reshape(moved), -1, axis)


def regrouped(
    weight: NDArray[np.floating], grid: WeightQuant, importance: ArrayLike | None = None, *, most: int | None = None
) -> WeightQuant:
    """The grid made anew from the weight as it is rounded, for the same kernel or one with room for `most`."""
    return grouped_grid(
        weight,
        grid.granularity,
        bits=grid.bits,
        symmetric=grid.symmetric,
        most=most or room_of(grid),
        importance=importance,
        input_scale=grid.input_scale,
    )


def room_of(grid: WeightQuant) -> int | None:
    """The `room` that a grid was made for: only layers that run in floats have multiples beyond those of kernels."""
    if grid.multiples.max() > _PAIRS:
        return None
    return BYTES if _PAIRS < largest_number(grid) <= BYTES else _PAIRS


def fitting(grid: WeightQuant, most: int | None) -> WeightQuant:
    """The form of a grid whose bits were changed: a scale per channel where groups have no room any more."""
    if most is None or _WORTH * (2**grid.bits - 1) <= most:
        return grid
    return dataclasses.replace(grid, unit=(), granularity=qmath.Granularity(axis=grid.channel_axis))


def largest_number(grid: WeightQuant) -> int:
    """The largest code less zero point, times its multiple."""
    low, high = grid.limits[0]
    zero = np.asarray(grid.zero_point)
    return int((grid.multiples.ravel() * np.maximum(high - zero, zero - low)).max())
