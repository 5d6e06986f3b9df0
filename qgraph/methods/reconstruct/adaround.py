"""AdaRound's own relaxation of a rounding (Nagel et al., 2020), to compare with: a stretched sigmoid and a regulariser.

A weight is s (floor(w / s) + h(V) - z), between the two codes next to the float weight, with (Eq. 23 and 24)

    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1),        f(V) = sum_i 1 - |2 h(V_i) - 1|^beta

f is zero where every h is 0 or 1. After a fifth of the steps it joins the loss, and beta falls from 20 to 2: at first,
only those near a code are drawn to it, at last all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.methods.reconstruct.variables import Floats, SoftWeight
from qgraph.plan.plan import WeightQuant

_FREE = 0.2  # of the steps without the regulariser
_BETA = 20.0, 2.0
_WAY = 6.0  # that the largest steps of V add up to, twice what leads from the middle to a code


@dataclass(eq=False)
class AdaRoundWeight(SoftWeight):
    """The weight of a layer between the two codes next to it; `share` is what the regulariser weighs at its most."""

    below: Floats
    logits: Floats
    share: float

    @classmethod
    def between(cls, weight: Floats, quant: WeightQuant, share: float) -> AdaRoundWeight:
        """Start where the float weight lies on the grid of the plan."""
        soft = SoftWeight.of(weight, quant, 0.0)
        exact = np.clip(weight / soft.step + soft.zero_point, soft.low, soft.high).astype(np.float32)
        below = np.minimum(np.floor(exact), np.broadcast_to(soft.high, exact.shape) - 1).astype(np.float32)
        inner = np.clip((exact - below + np.float32(0.1)) / np.float32(1.2), 1e-3, 1 - 1e-3)
        made = cls(
            soft.quant,
            soft.position,
            soft.step,
            soft.zero_point,
            soft.low,
            soft.high,
            below,
            np.log(inner / (1 - inner)).astype(np.float32),
            share,
        )
        made.constrain()
        return made

    @property
    def parameter(self) -> Floats:
        return self.logits

    def rate(self, reach: float, steps: int) -> float:
        return _WAY / steps

    def value(self, hardness: float) -> tuple[Floats, Floats]:
        value = ((self.position - self.zero_point) * self.step).astype(np.float32)
        return value, (self._slope() * self.step).astype(np.float32)

    def pull(self, progress: float, loss: float) -> Floats | None:
        """The gradient of the regulariser by V, whose whole is at most `share` of `loss`."""
        if progress < _FREE:
            return None
        first, last = _BETA
        beta = last + (first - last) * (1 - (progress - _FREE) / (1 - _FREE))
        away = 2 * (self.position - self.below) - 1
        by_h = -2 * beta * np.sign(away) * np.abs(away) ** (beta - 1)
        return (by_h * self._slope() * (self.share * loss / away.size)).astype(np.float32)

    def constrain(self) -> None:
        """Let the position follow V."""
        inside = np.clip(1.2 / (1 + np.exp(-self.logits)) - 0.1, 0.0, 1.0)
        self.position[...] = self.below + inside

    def _slope(self) -> NDArray[np.floating]:
        """dh / dV, zero where h is 0 or 1."""
        inside = self.position - self.below
        sigmoid = 1 / (1 + np.exp(-self.logits))
        return 1.2 * sigmoid * (1 - sigmoid) * ((inside > 0) & (inside < 1))
