"""When distillation is done: the ranges of channels no longer move.

The range of a channel ends at about mean +- 4 std. Over `WINDOW` steps, an end moves by at most |d mean| + 4 |d std|.
Ranges have settled when that is less than `tolerance` times 4 std for 9 channels of 10.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

WINDOW = 10  # steps
_ENDS = 4.0  # standard deviations from the mean
_SHARE = 0.9  # of channels
_CONSTANT = 1e-3  # of the median deviation: channels below it have no range


@dataclass(slots=True, kw_only=True)
class Settling:
    """Watches the means and standard deviations of channels from step to step."""

    tolerance: float
    done: bool = False
    _seen: deque[NDArray[Any]] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))

    def see(self, mean: NDArray[Any], std: NDArray[Any]) -> None:
        """Take in the statistics of one step."""
        self._seen.append(np.stack([mean, std]))
        if len(self._seen) > WINDOW and self.tolerance > 0:
            moved = np.abs(self._seen[-1] - self._seen[0])
            floor = _CONSTANT * float(np.median(std)) + 1e-30
            ends = (moved[0] + _ENDS * moved[1]) / (_ENDS * np.maximum(std, floor))
            self.done = bool(np.quantile(ends, _SHARE) < self.tolerance)

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        """What `restored` continues from."""
        return {"seen": np.stack(self._seen), "done": np.array(self.done)}

    @classmethod
    def restored(cls, tolerance: float, state: Mapping[str, NDArray[Any]]) -> Self:
        """The object whose `state` was saved."""
        made = cls(tolerance=tolerance, done=bool(state["done"]))
        made._seen.extend(state["seen"])
        return made
