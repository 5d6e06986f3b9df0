"""Adam (Kingma and Ba, 2015), in NumPy and in place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(slots=True, kw_only=True, eq=False)
class Adam:
    """Adam's state, the running means m of gradients g and v of g^2, both from zero, and its update.

    With m' = m / (1 - momentum^t) and v' = v / (1 - second^t), step t is

        x -= rate m' / (sqrt(v') + epsilon)

    (Algorithm 1), or with `epsilon_hat` the paper's more efficient order (end of section 2), in which `epsilon` is
    added to sqrt(v).
    """

    shape: tuple[int, ...]
    momentum: float = 0.9
    second: float = 0.999
    epsilon: float = 1e-8
    epsilon_hat: bool = False
    state: dict[str, Floats] = field(default_factory=dict)
    """The running means, as arrays `mean` and `square`."""

    def __post_init__(self) -> None:
        self.state = self.state or {name: np.zeros(self.shape, np.float32) for name in ("mean", "square")}

    def update(self, x: Floats, gradient: Floats, rate: Any, step: int) -> None:
        """Take step number `step` (from 1) of `x`, in place; `rate` is one number, or one per value."""
        mean, square = self.state["mean"], self.state["square"]
        mean += np.float32(1 - self.momentum) * (gradient - mean)
        square += np.float32(1 - self.second) * (gradient * gradient - square)
        of_mean, of_square, epsilon = 1 - self.momentum**step, 1 - self.second**step, np.float32(self.epsilon)
        if self.epsilon_hat:
            x -= rate * np.float32(math.sqrt(of_square) / of_mean) * mean / (np.sqrt(square) + epsilon)
        else:
            x -= rate / of_mean * mean / (np.sqrt(square / of_square) + epsilon)
