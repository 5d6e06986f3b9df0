"""The roundings of a plan as staircases: tables of which code a value gets."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.plan.plan import ActivationQuant, Rounding


@functools.lru_cache(maxsize=1024)
def rounding_table(rounding: Rounding, bits: int, *, signed: bool) -> qmath.RoundingTable:
    """The staircase of a rounding in steps of the grid (Q-Rater, Eq. 3 to 6), or on k-ths of a step if it has a k."""
    exact = qmath.rounding_table(
        rounding.gamma_n, rounding.gamma_s, bits=bits, signed=signed, exponent=rounding.reading
    )
    if not rounding.subdivision:
        return exact
    fine = np.arange(exact.qmin * rounding.subdivision, exact.qmax * rounding.subdivision + 1)
    codes = exact.quantize(fine / rounding.subdivision, 1.0)
    changes = np.flatnonzero(np.diff(codes)) + 1
    edges = (fine[changes] - 0.5) / rounding.subdivision
    return qmath.RoundingTable(bits=bits, signed=signed, edges=edges, codes=codes[np.append(0, changes)])


def activation_table(quant: ActivationQuant) -> qmath.RoundingTable | None:
    """The staircase of an activation's rounding, with codes relative to zero, not to the lowest code."""
    if quant.rounding is None:
        return None
    return rounding_table(quant.rounding, quant.bits, signed=quant.symmetric)


def staircase(quant: ActivationQuant) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ascending thresholds of a rounding, in the units of x, and the codes below, between and above them."""
    table = activation_table(quant)
    if table is None:
        raise ValueError(f"the grid of '{quant.tensor}' has no rounding")
    return table.thresholds(float(np.float32(quant.scale)), dtype=np.float32), table.codes + quant.zero_point


def lookup(quant: ActivationQuant) -> NDArray[np.uint8]:
    """For a rounding with subdivision k, the code of each multiple of a k-th of a step above the grid's low end."""
    table = activation_table(quant)
    if table is None or quant.rounding is None or not quant.rounding.subdivision:
        raise ValueError(f"the grid of '{quant.tensor}' has no rounding with a subdivision")
    k = quant.rounding.subdivision
    fine = (np.arange(quant.qmax * k + 1) - quant.zero_point * k) / k
    return (table.quantize(fine, 1.0).astype(np.int64) + quant.zero_point).astype(np.uint8)


def on_grid(x: NDArray[np.floating], quant: ActivationQuant) -> NDArray[np.floating]:
    """`x` as the quantized network sees it: what `simulate` computes, in NumPy and in the dtype of `x`."""
    table = activation_table(quant)
    if table is not None:
        return table.fake_quantize(x, float(np.float32(quant.scale)))
    return qmath.fake_quantize(x, uniform_grid(quant))


@functools.lru_cache(maxsize=1024)
def uniform_grid(quant: ActivationQuant) -> qmath.Grid:
    """The grid of an activation without its rounding; steps per channel are along axis 1."""
    bits: Any = quant.channel_bits or quant.bits
    if quant.symmetric:  # stored codes start at 0, the lowest
        return qmath.Grid(bits, quant.scale, offset=quant.offset, narrow=True)
    scale = np.asarray([quant.scale * factor for factor in quant.channel_scale]) if quant.channel_scale else quant.scale
    axis = 1 if quant.channel_scale else None
    zero_point, offset = quant.zero_point, quant.offset
    return qmath.Grid(bits, scale, zero_point=zero_point, offset=offset, signed=False, axis=axis)
