"""The integer codes of a weight on its grid, and the values they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import qmath
from qgraph.errors import PlanError
from qgraph.plan.held_codes import from_text, to_text
from qgraph.plan.plan import MAX_SHIFTED_BITS, ActivationQuant, WeightQuant
from qgraph.plan.staircase import rounding_table
from qgraph.running.wording import option

_BLOCK = 2**20  # values at a time


@contextmanager
def _within_float32() -> Iterator[None]:
    """Raise `PlanError` where the grid of very large weights would leave the range of float32."""
    try:
        yield
    except PlanError:
        raise
    except ValueError as error:
        raise PlanError(f"no grid spans the weights: {error}; leave the layer float with {option('keep')}") from None


@_within_float32()
def codes(weight: NDArray[np.floating], quant: WeightQuant) -> NDArray[np.int8]:
    """clip(round(w input_scale / scale) + zero_point, qmin, qmax) as int8, half to even or by the grid's rounding.

    Codes that the grid holds itself are what they are.
    """
    if quant.codes:
        return from_text(quant.codes, weight.shape, bits=max(quant.widths), lowest=quant.qmin)
    if _is_cut(weight.shape, quant):
        found = np.empty(weight.shape, np.int8)
        for some, part in parts(weight.shape, quant):
            found[some] = codes(weight[some], part)
        return found
    weight = scaled(weight, quant)
    if quant.even:
        return np.asarray(
            qmath.round_evenly(weight, rounding_grid(quant, weight.shape), **_likely(quant, weight)), np.int8
        )
    if quant.rounding is None:
        return np.asarray(qmath.quantize(weight, rounding_grid(quant, weight.shape)), np.int8)
    table = rounding_table(quant.rounding, quant.bits, signed=True)
    if len(quant.scale) == 1:
        return np.asarray(table.quantize(weight, quant.scale[0]), np.int8)
    rows = table.quantize(quant.granularity.rows(weight), quant.scale, axis=0)
    return np.ascontiguousarray(quant.granularity.from_rows(rows, weight.shape), np.int8)


def with_codes(quant: WeightQuant, integer: NDArray[np.integer]) -> WeightQuant:
    """The grid with these codes of its weight."""
    return replace(quant, codes=to_text(integer, bits=max(quant.widths), lowest=quant.qmin))


@_within_float32()
def values(integer: NDArray[np.integer], quant: WeightQuant) -> NDArray[np.float32]:
    """gain * scale * (code - zero_point) as DequantizeLinear computes it, in one float32 product.

    The factors of `input_scale` stay in the result.
    """
    return qmath.dequantize(integer, _grid(quant, dequantization_scale(quant), integer.shape))


def scaled(weight: NDArray[np.floating], quant: WeightQuant) -> NDArray[np.floating]:
    """The weight as it is rounded: w input_scale."""
    return weight * over_inputs(quant.input_scale, quant, weight.shape) if quant.input_scale else weight


@_within_float32()
def quantized(weight: NDArray[np.floating], quant: WeightQuant) -> NDArray[np.float32]:
    """The weight as the quantized layer sees it."""
    if quant.shift:
        result = quantized(weight, replace(quant, shift=()))
        return np.asarray(result + quant.granularity.lay(np.asarray(quant.shift, np.float32), weight.shape))
    plain = quant.rounding is None and not (quant.input_scale or quant.codes or quant.even)
    if plain and set(quant.gain) == {1.0}:
        return np.asarray(qmath.fake_quantize(weight, rounding_grid(quant, weight.shape)), np.float32)
    result = values(codes(weight, quant), quant)
    if not quant.input_scale:
        return result
    factors = over_inputs(quant.input_scale, quant, weight.shape)
    return np.where(factors > 0, result / np.where(factors > 0, factors, 1.0), weight).astype(np.float32, copy=False)


def rounding_grid(quant: WeightQuant, shape: tuple[int, ...], scale: ArrayLike | None = None) -> qmath.Grid:
    """The grid that rounds a weight of this shape: without the gain, and with `scale` if one is given."""
    return _grid(quant, quant.scale if scale is None else scale, shape)


def _grid(quant: WeightQuant, scale: ArrayLike, shape: tuple[int, ...]) -> qmath.Grid:
    """The grid with this scale; it has no axis where each parameter is a single number."""
    parameters: list[NDArray[Any]] = [np.ravel(part) for part in (quant.widths, scale, quant.zero_point)]
    granularity = quant.granularity
    if all(part.size == 1 for part in parameters):
        parameters, granularity = [part.reshape(()) for part in parameters], qmath.Granularity()
    else:
        _check_fit([part.size for part in parameters], granularity, shape)
    bits, steps, zero_point = parameters
    return qmath.Grid(
        bits if bits.size > 1 else bits.item(),
        steps,
        zero_point=zero_point,
        narrow=quant.symmetric,
        axis=granularity.axis,
        group=granularity.group,
    )


def _check_fit(sizes: Sequence[int], granularity: qmath.Granularity, shape: tuple[int, ...]) -> None:
    """Raise `PlanError` unless each parameter is a single number, or has as many as a weight of this shape needs."""
    fits = granularity.axis is None or 0 <= granularity.axis < len(shape)
    if not fits or not set(sizes) <= {1, granularity.count(shape)}:
        raise PlanError(
            f"a grid with {max(sizes)} scales {granularity} does not fit a weight of shape {list(shape)}: the plan was "
            f"edited, or is for other weights"
        )


def row_blocks(array: NDArray[Any], granularity: qmath.Granularity) -> Iterator[NDArray[Any]]:
    """The rows of a weight (`qmath.Granularity.rows`), one for each scale, in blocks of limited size."""
    if granularity.per_channel:
        moved = np.moveaxis(array, granularity.axis or 0, 0)
        return (moved[some].reshape(len(moved[some]), -1) for some in _blocks(moved.shape))
    rows = granularity.rows(array)
    return (rows[some] for some in _blocks(rows.shape))


def _is_cut(shape: Sequence[int], quant: WeightQuant) -> bool:
    large = quant.granularity.group is not None and len(shape) == 2 and math.prod(shape) > _BLOCK
    return large and shape[quant.channel_axis or 0] > 1


def parts(shape: tuple[int, ...], quant: WeightQuant) -> Iterator[tuple[tuple[slice, ...], WeightQuant]]:
    """A weight with groups some channels at a time, with their grids; any other, or a small one, as a whole."""
    if not _is_cut(shape, quant):
        yield (slice(None),), quant
        return
    along = quant.granularity.axis or 0
    wanted, across = quant.granularity.parameter_shape(shape), 1 - along
    columns = max(1, _BLOCK // max(1, shape[along]))
    for start in range(0, shape[across], columns):
        some = [slice(None), slice(None)]
        some[across] = slice(start, start + columns)

        def part(numbers: tuple[Any, ...], some: list[slice] = some) -> tuple[Any, ...]:
            return (
                numbers
                if len(numbers) == 1
                else tuple(np.asarray(numbers).reshape(wanted)[tuple(some)].ravel().tolist())
            )

        unit = quant.unit[some[across]]
        yield tuple(some), replace(quant, scale=part(quant.scale), zero_point=part(quant.zero_point), unit=unit)


def dequantization_scale(quant: WeightQuant) -> NDArray[np.float32]:
    """scale * gain as float32, one per channel or one in all."""
    return (np.asarray(quant.scale) * np.asarray(quant.gain)).astype(np.float32)


def is_shifted(quant: WeightQuant) -> bool:
    """Whether files hold code - zero_point, which fits int8 and needs no zero point in the kernel."""
    return not quant.symmetric and (bool(quant.unit) or max(quant.widths) <= MAX_SHIFTED_BITS)


def finer(quant: WeightQuant) -> tuple[int, ...]:
    """How many times finer the grid is that narrow weights are unpacked to, for each scale or one in all.

    Integer kernels round biases to multiples of the operand's scale times the weight's, and few bits make that step
    coarse. A grid finer by as much as 7 bits allow costs nothing; the eighth bit is left out for CPUs whose 16-bit
    sums would overflow (see `--reduce-range`). Groups are unpacked to the unit of their channel.
    """
    if quant.unit:
        return tuple(quant.multiples.ravel().tolist())
    return tuple(1 << max(7 - is_shifted(quant) - bits, 0) for bits in quant.widths)


def stored(integer: NDArray[np.int8], quant: WeightQuant) -> NDArray[np.int32]:
    """The integers that a kernel multiplies: codes times `finer`, less the zero point where `is_shifted`."""
    result = integer.astype(np.int32)
    if is_shifted(quant):
        result -= quant.granularity.lay(quant.zero_point, integer.shape).astype(np.int32)
    return result * quant.granularity.lay(finer(quant), integer.shape).astype(np.int32)


def accumulator_scale(quant: WeightQuant, operand: ActivationQuant) -> NDArray[np.float32]:
    """The step of an integer kernel's accumulator, per channel or one in all; biases are multiples of it."""
    scale: NDArray[np.float32] = np.float32(operand.scale) * kernel_scale(quant)
    return scale


def kernel_scale(quant: WeightQuant) -> NDArray[np.float32]:
    """The step of the integers that a kernel multiplies (`stored`), per channel or one in all."""
    if quant.unit:
        return np.asarray(quant.unit, np.float32) * np.float32(quant.gain[0])
    return np.asarray(dequantization_scale(quant) / np.asarray(finer(quant), np.float32), np.float32)


def _blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the rows of a weight: intermediate results are several times as large as the weight."""
    rows = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def _likely(quant: WeightQuant, weight: NDArray[np.floating]) -> dict[str, Any]:
    """What `qmath.round_evenly` is told of the operand of a weight."""
    axis = quant.channel_axis or 0
    found: dict[str, Any] = {"axis": axis}
    if quant.even == "taps":
        found["mean"] = 0.0
    elif quant.even == "means":
        found["correlation"] = 0.0
    for name, numbers in (("mean", quant.input_mean), ("spread", quant.input_spread)):
        if numbers:
            laid = np.moveaxis(over_inputs(numbers, quant, weight.shape), axis, 0)
            found[name] = laid.reshape(*laid.shape[:2])
    return found


def over_inputs(numbers: ArrayLike, quant: WeightQuant, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers of the input channels laid along the inputs of a weight.

    Those are the inputs of a Conv weight (outputs x inputs per group x ...), group after group, or the rows of a matrix
    with a scale per column.
    """
    factors = np.asarray(numbers, np.float32)
    if len(shape) == 2 and quant.channel_axis == 1 and factors.size == shape[0]:
        return factors[:, None]
    outputs, inputs = shape[:2]
    groups = factors.size // inputs
    if groups * inputs != factors.size or outputs % groups:
        raise PlanError(f"{factors.size} values of input channels do not fit a weight of shape {list(shape)}")
    rows = np.repeat(factors.reshape(groups, inputs), outputs // groups, axis=0)
    return rows.reshape(outputs, inputs, *[1] * (len(shape) - 2))
