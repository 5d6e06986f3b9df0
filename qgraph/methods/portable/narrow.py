"""The weight of one layer, rounded so that no pair of its products saturates 16 bits and no sum leaves 32.

Pairs that would saturate are moved alone (`qmath.round_pairs`), each error weighted by the variance of its operand; the
mean goes into the bias. That is tried at steps between the one that reaches the largest weight, where
most pairs move, and the one at which none has to, and the step with the least error is taken, channel by channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.plan import codes as weights
from qgraph.plan.plan import MAX_BITS, WeightQuant
from qgraph.plan.saturation import largest_pairs

Exact = Callable[[NDArray[np.floating]], NDArray[np.float64]]
_TRIED = 9  # steps, from the finest to one at which no pair has to move


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowed:
    """A weight grid with codes that saturate nowhere: how many of the layer's pairs moved, and the errors in dB.

    `db` is the signal of the products over their error; `free_db` without any limit, `coarse_db` with steps so coarse
    that no pair moves.
    """

    grid: WeightQuant
    pairs: int
    moved: int
    db: float
    free_db: float
    coarse_db: float

    def __str__(self) -> str:
        return (
            f"{self.moved} of {self.pairs} pairs of products were narrowed: {self.db:.1f} dB, {self.free_db:.1f} dB "
            f"without the limit, {self.coarse_db:.1f} dB by coarser steps alone"
        )


def narrowed(
    layer: Layer, grid: WeightQuant, limit: int, variance: NDArray[np.floating] | None, exact: Exact
) -> Narrowed | None:
    """The weight of a layer with an 8-bit symmetric grid, narrowed; None where rounding to nearest is safe already.

    `limit` is what two codes of a pair may add up to, `variance` that of each operand channel (None: all alike), and
    `exact` turns steps into steps that may be used.
    """
    array = layer.weight_array()
    rows = layer.kernel_rows(array).astype(np.float64)
    cost = layer.kernel_rows(_importance(array, grid, variance))
    reach = np.abs(rows).max(axis=1) if len(grid.scale) > 1 else np.abs(rows).max(keepdims=True).reshape(1)
    finest = exact(np.where(reach > 0, np.minimum(reach / (2.0 ** (MAX_BITS - 1) - 1), grid.scale), grid.scale))
    nearest = np.clip(np.rint(rows / _column(finest, rows)), -127, 127)
    if (largest_pairs(layer, _shaped(layer, nearest, array.shape)) <= limit).all():
        return None
    coarsest = _coarsest(rows, finest, limit)
    shares = np.linspace(0, 1, _TRIED)
    found = [_at(exact(finest * coarsest**share), rows, cost, limit) for share in shares]
    errors = np.stack([_per_scale(error, len(finest)) for _, _, error in found])
    chosen = errors.argmin(axis=0)
    best = np.resize(chosen, len(rows))
    codes = np.stack([codes for codes, _, _ in found])[best, np.arange(len(rows))]
    scale = np.stack([steps for _, steps, _ in found])[chosen, np.arange(len(finest))]
    free = ((rows - nearest * _column(finest, rows)) ** 2 * cost).sum(axis=1)
    power, last = (rows**2 * cost).sum(), found[-1][2]
    plain = np.clip(np.rint(rows / _column(scale, rows)), -127, 127)
    held = dataclasses.replace(grid, scale=tuple(float(s) for s in scale), codes="")
    whole = _shaped(layer, codes, array.shape)
    return Narrowed(
        grid=held if (codes == plain).all() else weights.with_codes(held, whole),
        pairs=rows.shape[0] * (rows.shape[1] // 2),
        moved=int((codes != plain)[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2).any(axis=2).sum()),
        db=_db(power, errors.min(axis=0).sum()),
        free_db=_db(power, free.sum()),
        coarse_db=_db(power, last.sum()),
    )


def _at(
    scale: NDArray[np.float64], rows: NDArray[np.float64], cost: NDArray[np.floating], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Codes on these steps, the steps, and the error of every row."""
    column = _column(scale, rows)
    codes = qmath.round_pairs(rows / column, limit, importance=cost)
    return codes, scale, ((rows - codes * column) ** 2 * cost).sum(axis=1)


def _coarsest(rows: NDArray[np.float64], finest: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """How many times as coarse each step must be for every pair to be safe as it is."""
    padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))) / _column(finest, rows)
    even, odd = padded[:, ::2], padded[:, 1::2]
    same = np.where(even * odd > 0, np.abs(even + odd), 0.0).max(axis=1, initial=0.0)
    largest = same if len(finest) > 1 else same.max(keepdims=True)
    return np.maximum(1.0, largest / max(limit - 1, 1))


def _importance(
    array: NDArray[np.floating], grid: WeightQuant, variance: NDArray[np.floating] | None
) -> NDArray[np.floating]:
    """What a squared error of each weight costs: the variance of the operand that it multiplies."""
    ones = np.ones_like(array)
    if variance is None or not np.any(variance > 0):
        return ones
    floor = np.maximum(variance, 1e-6 * float(np.max(variance)))
    spread = tuple(float(v) for v in floor / floor.mean())
    return weights.scaled(ones, dataclasses.replace(grid, input_scale=spread, codes=""))


def _column(scale: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.resize(scale, len(rows)).reshape(-1, 1)


def _per_scale(errors: NDArray[np.float64], scales: int) -> NDArray[np.float64]:
    return errors if scales > 1 else errors.sum(keepdims=True)


def _shaped(layer: Layer, rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Rows in the order of the kernel, back in the shape of the weight."""
    places = layer.kernel_rows(np.arange(np.prod(shape)).reshape(shape))
    flat = np.empty(rows.size, np.int8)
    flat[places.reshape(-1)] = rows.reshape(-1)
    return flat.reshape(shape)


def _db(power: float, error: float) -> float:
    return float(10 * np.log10(power / error)) if error > 0 and power > 0 else np.inf
