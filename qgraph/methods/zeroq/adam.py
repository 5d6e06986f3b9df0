"""Adam with a plateau schedule, in NumPy: what the distillation of one batch remembers between steps."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_IMPROVEMENT = 1e-4  # a loss counts as better when it is smaller by this share


@dataclass(slots=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba, 2015) on one array, its rate multiplied by `factor` after `patience` steps without
    progress."""

    rate: float
    factor: float
    patience: int
    floor: float
    step: int = 0
    best: float = float("inf")
    waited: int = 0
    mean: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    square: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def update(self, x: NDArray[np.float32], gradient: NDArray[np.float32], loss: float) -> None:
        """Move `x` in place against `gradient`, then look at the loss it was taken at."""
        if not self.step:
            self.mean, self.square = np.zeros_like(x), np.zeros_like(x)
        self.step += 1
        self.mean += (1 - _BETA1) * (gradient - self.mean)
        self.square += (1 - _BETA2) * (gradient * gradient - self.square)
        scale = self.rate / (1 - _BETA1**self.step)
        x -= scale * self.mean / (np.sqrt(self.square / (1 - _BETA2**self.step)) + np.float32(_EPSILON))
        self._schedule(loss)

    def _schedule(self, loss: float) -> None:
        if loss < self.best * (1 - _IMPROVEMENT):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.rate, self.waited = max(self.rate * self.factor, self.floor), 0

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def restored(cls, state: dict[str, NDArray[Any]]) -> Adam:
        """What `state` described."""
        values: dict[str, Any] = {f.name: (v if (v := state[f.name]).ndim else v.item()) for f in fields(cls)}
        return cls(**values)
