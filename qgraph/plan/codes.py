"""The integer codes of a weight under a plan's grid, and the values they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import PlanError
from qgraph.plan.plan import MAX_SHIFTED_BITS, ActivationQuant, WeightQuant
from qgraph.plan.staircase import rounding_table

_BLOCK = 2**20  # values at a time


def codes(weight: NDArray[np.floating], quant: WeightQuant) -> NDArray[np.int8]:
    """clip(round(w input_scale / scale) + zero_point, qmin, qmax) in int8, half to even or by the grid's rounding."""
    weight = scaled(weight, quant)
    if quant.rounding is not None:
        table = rounding_table(quant.rounding, quant.bits, signed=True)
        scales = quant.scale[0] if quant.axis is None or len(quant.scale) == 1 else quant.scale
        axis = None if np.ndim(scales) == 0 else quant.axis
        return np.asarray(table.quantize(weight, scales, axis=axis), np.int8)
    return _in_blocks(_rounded, weight, np.dtype(np.int8), *_grid(quant, weight.ndim))


def values(integer: NDArray[np.integer], quant: WeightQuant) -> NDArray[np.float32]:
    """gain * scale * (code - zero_point), computed as DequantizeLinear does: one float32 product (with `input_scale`
    inside).
    """
    return _in_blocks(_real, integer, np.dtype(np.float32), *_levels(quant, integer.ndim))


def scaled(weight: NDArray[np.floating], quant: WeightQuant) -> NDArray[np.floating]:
    """What is rounded: w input_scale."""
    return weight * _over_inputs(quant, weight.shape) if quant.input_scale else weight


def quantized(weight: NDArray[np.floating], quant: WeightQuant) -> NDArray[np.float32]:
    """The weight as the quantized layer sees it."""
    if quant.rounding is not None or quant.input_scale:
        result = values(codes(weight, quant), quant)
        return result / _over_inputs(quant, weight.shape) if quant.input_scale else result

    def through(block: NDArray[Any], *grid: NDArray[Any]) -> NDArray[Any]:
        return _real(_rounded(block, *grid[:4]), *grid[4:])

    grid = *_grid(quant, weight.ndim), *_levels(quant, weight.ndim)
    return _in_blocks(through, weight, np.dtype(np.float32), *grid)


def channel_blocks(array: NDArray[Any], axis: int | None) -> Iterator[NDArray[Any]]:
    """The channels along `axis` some at a time, as views; the array itself without one."""
    if axis is None:
        return iter([array])
    moved = np.moveaxis(array, axis, 0)
    return (np.moveaxis(moved[rows], 0, axis) for rows in _blocks(moved.shape))


def dequantization_scale(quant: WeightQuant) -> NDArray[np.float32]:
    """scale * gain in float32, one per channel (or one)."""
    return (np.asarray(quant.scale) * np.asarray(quant.gain)).astype(np.float32)


def is_shifted(quant: WeightQuant) -> bool:
    """Whether files hold code - zero_point as int8, which integer kernels take without a zero point."""
    return not quant.symmetric and max(quant.widths) <= MAX_SHIFTED_BITS


def finer(quant: WeightQuant) -> tuple[int, ...]:
    """How much finer the grid is on which narrow weights are unpacked, for every channel or for all: as much as 7 bits
    allow, at no cost.

    Integer kernels round biases to multiples of the operand's scale times the weight's, which few bits make coarse.
    The eighth bit is left out for CPUs whose 16-bit sums would overflow (see `--reduce-range`).
    """
    return tuple(1 << max(7 - is_shifted(quant) - bits, 0) for bits in quant.widths)


def stored(integer: NDArray[np.int8], quant: WeightQuant) -> NDArray[np.int16]:
    """What an integer kernel multiplies: the codes on the finer grid of narrow weights, less their zero points where
    files hold them so.
    """
    rank = integer.ndim
    result = integer.astype(np.int16)
    if is_shifted(quant):
        result -= _along(quant.zero_point, quant, rank).astype(np.int16)
    return result * _along(finer(quant), quant, rank).astype(np.int16)


def accumulator_scale(quant: WeightQuant, operand: ActivationQuant) -> NDArray[np.float32]:
    """The unit of an integer kernel's sums, one per channel (or one): biases are whole multiples of it."""
    narrow = np.asarray(finer(quant), np.float32)
    scale: NDArray[np.float32] = np.float32(operand.scale) * dequantization_scale(quant) / narrow
    return scale


def _along(per_channel: Sequence[float] | NDArray[np.floating], quant: WeightQuant, rank: int) -> NDArray[Any]:
    array = np.asarray(per_channel)
    if quant.axis is None or array.size == 1:
        return array.reshape((1,) * rank)
    return array.reshape([-1 if i == quant.axis else 1 for i in range(rank)])


def _grid(quant: WeightQuant, rank: int) -> tuple[NDArray[Any], ...]:
    """Scale, zero point, lowest and highest code, laid along a weight of this rank."""
    low, high = zip(*quant.limits, strict=True)
    scale = _along(quant.scale, quant, rank).astype(np.float32)
    return scale, *(_along(numbers, quant, rank) for numbers in (quant.zero_point, low, high))


def _levels(quant: WeightQuant, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Zero point and the scale of DequantizeLinear, laid along a weight of this rank."""
    zero_point = _along(quant.zero_point, quant, rank).astype(np.float32)
    return zero_point, _along(dequantization_scale(quant), quant, rank)


def _rounded(
    weight: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any], low: NDArray[Any], high: NDArray[Any]
) -> NDArray[Any]:
    return np.clip(np.rint(weight / scale) + zero_point, low, high)


def _real(integer: NDArray[Any], zero_point: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return (integer.astype(np.float32) - zero_point) * scale


def _in_blocks(
    function: Callable[..., NDArray[Any]], weight: NDArray[Any], kind: np.dtype[Any], *grid: NDArray[Any]
) -> NDArray[Any]:
    """A function of a weight and of arrays along it, computed for some rows at a time."""
    result = np.empty(weight.shape, kind)
    for rows in _blocks(weight.shape):
        result[rows] = function(weight[rows], *(part if part.shape[0] == 1 else part[rows] for part in grid))
    return result


def _blocks(shape: Sequence[int]) -> Iterator[slice]:
    """The rows of a weight, some at a time: what is computed on the way to integers is several times as large."""
    rows = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def _over_inputs(quant: WeightQuant, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`input_scale` laid along the inputs of a Conv weight (outputs x inputs per group x ...), group after group."""
    factors = np.asarray(quant.input_scale, np.float32)
    outputs, inputs = shape[:2]
    groups = factors.size // inputs
    if groups * inputs != factors.size or outputs % groups:
        raise PlanError(f"{factors.size} values of input_scale do not fit a weight of shape {list(shape)}")
    rows = np.repeat(factors.reshape(groups, inputs), outputs // groups, axis=0)
    return rows.reshape(outputs, inputs, *[1] * (len(shape) - 2))
