"""The staircases behind the roundings of a plan: which code a value gets, as a table."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.plan.plan import ActivationQuant, Rounding


@functools.lru_cache(maxsize=1024)
def rounding_table(rounding: Rounding, bits: int, *, signed: bool) -> qmath.RoundingTable:
    """The staircase of a rounding, in steps of the grid: Q-Rater's Eq. 3 to 6, on k-ths of a step where it has k."""
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
    """The staircase of an activation's rounding; its codes count from zero, not from the lowest code."""
    if quant.rounding is None:
        return None
    return rounding_table(quant.rounding, quant.bits, signed=quant.symmetric)


def staircase(quant: ActivationQuant) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ascending thresholds in the units of x, and the codes below, between and above them, for a rounding."""
    table = activation_table(quant)
    if table is None:
        raise ValueError(f"the grid of '{quant.tensor}' has no rounding")
    return table.thresholds(float(np.float32(quant.scale)), dtype=np.float32), table.codes + quant.zero_point


def lookup(quant: ActivationQuant) -> NDArray[np.uint8]:
    """The code for each number of k-ths of a step above the grid's low end, for a rounding with a subdivision k."""
    table = activation_table(quant)
    if table is None or quant.rounding is None or not quant.rounding.subdivision:
        raise ValueError(f"the grid of '{quant.tensor}' has no rounding with a subdivision")
    k = quant.rounding.subdivision
    fine = (np.arange(quant.qmax * k + 1) - quant.zero_point * k) / k
    return (table.quantize(fine, 1.0).astype(np.int64) + quant.zero_point).astype(np.uint8)


def on_grid(x: NDArray[np.float32], quant: ActivationQuant) -> NDArray[np.float32]:
    """`x` as the quantized network sees it: what `simulate` computes, in NumPy."""
    table = activation_table(quant)
    scale = np.float32(quant.scale)
    if table is not None:
        return np.asarray(table.fake_quantize(x, float(scale)), np.float32)
    codes = np.rint(x / scale)
    np.clip(codes, -quant.zero_point, quant.qmax - quant.zero_point, out=codes)
    return codes * scale
