"""Adam with a plateau schedule: what the distillation of one batch remembers between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qgraph.gradient.adam import Adam, Floats

_IMPROVEMENT = 1e-4  # a loss counts as better when it is smaller by this share
_SCHEDULE = ("rate", "step", "best", "waited")


@dataclass(slots=True, kw_only=True, eq=False)
class Plateau:
    """Moves one array by `adam`, at a rate that is multiplied by `factor` after `patience` steps without progress."""

    adam: Adam
    rate: float
    factor: float
    patience: int
    floor: float
    step: int = 0
    best: float = float("inf")
    waited: int = 0

    def update(self, x: Floats, gradient: Floats, loss: float) -> None:
        """Move `x` in place against `gradient`, then look at the loss it was taken at."""
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
        """What it remembers beside the state of `adam`."""
        return {name: getattr(self, name) for name in _SCHEDULE}

    def restore(self, schedule: dict[str, Any], state: dict[str, Floats]) -> None:
        """Go on where `schedule` and the state of `adam` were taken."""
        for name in _SCHEDULE:
            setattr(self, name, schedule[name])
        self.adam.state = state
