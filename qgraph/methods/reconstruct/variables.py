"""What is learned of a block, in NumPy: positions of weights between codes, scales and zero points of grids, biases.

A weight is s (soft_round(v) - z) / r for a position v in codes, with the grid's step s, zero point z and factors r of
its inputs. Scales are learned as logarithms, so that they stay positive; zero points as reals that are rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.methods.reconstruct.graph import key
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, WeightQuant

Floats = NDArray[np.float32]
Feeds = dict[str, NDArray[np.generic]]
_FARTHER = 3.56  # times the codes for every bit beyond 4: ten times as far in weights at 8 bits


@dataclass(eq=False)
class SoftWeight:
    """The weight of a layer on its way to codes."""

    quant: WeightQuant
    position: Floats
    step: Floats
    """dw / dv: gain * scale / input_scale, laid along the weight."""
    zero_point: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, weight: Floats, quant: WeightQuant, softness: float) -> SoftWeight:
        """Start between the plan's codes and where the float weight lies on the grid, `softness` of the way."""
        shape, shared = weight.shape, quant.granularity
        factors = weights.scaled(np.ones_like(weight), quant)
        step = shared.lay(weights.dequantization_scale(quant), shape) / np.where(factors > 0, factors, 1.0)
        zero_point = shared.lay(np.asarray(quant.zero_point, np.float32), shape)
        low, high = np.array(quant.limits, np.float32).T
        code = weights.codes(weight, quant).astype(np.float32)
        exact = np.clip(weight / step + zero_point, code - 0.5, code + 0.5)
        position = code + np.float32(softness) * (exact - code)
        low, high = shared.lay(low, shape), shared.lay(high, shape)
        return cls(quant, position.astype(np.float32), np.asarray(step, np.float32), zero_point, low, high)

    def value(self, hardness: float) -> tuple[Floats, Floats]:
        """The weight at this hardness, and its slope in v."""
        soft, slope = qmath.soft_round(self.position, hardness)
        return ((soft - self.zero_point) * self.step).astype(np.float32), (slope * self.step).astype(np.float32)

    @property
    def parameter(self) -> Floats:
        """What is learned: the position itself."""
        return self.position

    def rate(self, reach: float, steps: int) -> float:
        """The rate of positions, in codes, with which they move by `reach` in all along half a cosine.

        With each bit more, `reach` is `_FARTHER` times as many codes.
        """
        return 2.0 * reach * _FARTHER ** max(self.quant.bits - 4, 0) / steps

    def pull(self, progress: float, loss: float) -> Floats | None:
        """The gradient of what is added to the loss, if anything is: the staircase leads to codes by itself."""
        return None

    def constrain(self) -> None:
        """Keep what is learned on the grid."""
        np.clip(self.position, self.low, self.high, out=self.position)

    def codes(self) -> NDArray[np.int8]:
        return np.clip(np.rint(self.position), self.low, self.high).astype(np.int8)


@dataclass(eq=False)
class TrainedGrid:
    """The grid of an activation: the logarithm of its scale relative to the start, and its zero point as a real."""

    quant: ActivationQuant
    non_negative: bool
    log_scale: Floats
    zero_point: Floats

    @classmethod
    def of(cls, quant: ActivationQuant, *, non_negative: bool) -> TrainedGrid:
        return cls(quant, non_negative, np.zeros(1, np.float32), np.full(1, quant.zero_point, np.float32))

    def now(self) -> ActivationQuant:
        """The grid as the plan holds it."""
        scale = float(np.float32(self.quant.scale * np.exp(np.float64(self.log_scale[0]))))
        zero_point = int(np.clip(np.rint(self.zero_point[0]), 0, min(self.quant.channel_qmax)))
        return dataclasses.replace(self.quant, scale=scale, zero_point=zero_point)

    def feeds(self) -> Feeds:
        grid = self.now()
        name = key(grid)
        factors = np.asarray(grid.channel_scale or 1.0, np.float32)
        scale = np.asarray(np.float32(grid.scale) * factors, np.float32)
        highest = np.asarray(grid.channel_qmax if grid.channel_bits else grid.qmax, np.uint8)
        return {
            f"step:{name}": np.asarray(grid.scale, np.float32),
            f"scale:{name}": scale,
            f"low:{name}": self._along(-scale * np.float32(grid.zero_point)),
            f"high:{name}": self._along(scale * (highest.astype(np.float32) - np.float32(grid.zero_point))),
            f"zero_point:{name}": np.full(scale.shape, grid.zero_point, np.uint8),
            f"highest:{name}": self._along(np.broadcast_to(highest, scale.shape)),
        }

    rank: int = 4

    def _along(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Numbers of channels shaped to broadcast along axis 1."""
        array = np.asarray(array)
        return array.reshape(1, -1, *[1] * (self.rank - 2)) if array.ndim else array

    def gradients(self, found: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """Those of `log_scale` and `zero_point`."""
        grid = self.now()
        by_scale = found[f"step:{key(grid)}"] * np.float32(grid.scale)
        if self.non_negative:
            return np.full(1, by_scale, np.float32), np.zeros(1, np.float32)
        shifted = np.asarray(found[f"low:{key(grid)}"]).sum()
        return np.full(1, by_scale, np.float32), np.full(1, -shifted * np.float32(grid.scale), np.float32)
