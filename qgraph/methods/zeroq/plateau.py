"""Adam with a plateau schedule: the state of the distillation of one batch between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qgraph.gradient.adam import Adam, Floats

_IMPROVEMENT = 1e-4  # the relative decrease by which a loss counts as better
_SCHEDULE = ("rate", "step", "best", "waited")


@dataclass(slots=True, kw_only=True, eq=False)
class Plateau:
    """Updates one array by `adam`, at a rate that is multiplied by `factor` after `patience` steps without progress."""

    adam: Adam
    rate: float
    factor: float
    patience: int
    floor: float
    step: int = 0
    best: float = float("inf")
    waited: int = 0

    def update(self, x: Floats, gradient: Floats, loss: float) -> None:
        """Update `x` in place, then adapt the rate to the loss at which `gradient` was taken."""
        self.step += 1
        self.adam.update(x, gradient, self.rate, self.step)
        if loss < self.best * (1 - _IMPROVEMENT):
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.rate, self.waited = max(self.rate * self.factor, self.floor), 0

    @property
    def schedule(self) -> dict[str, Any]:
        """Its state, without that of `adam`."""
        return {name: getattr(self, name) for name in _SCHEDULE}

    def restore(self, schedule: dict[str, Any], state: dict[str, Floats]) -> None:
        """Continue from a saved `schedule` and state of `adam`."""
        for name in _SCHEDULE:
            setattr(self, name, schedule[name])
        self.adam.state = state
