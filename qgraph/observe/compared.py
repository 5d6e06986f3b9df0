"""What the task loses: one figure for the float model and for another model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The figure `name` on the same `samples`, for the float model (`before`) and for another model (`after`).

    `margin` is half the 95 % confidence interval of the difference; None if it is unknown.
    """

    name: str
    before: float
    after: float
    samples: int
    margin: float | None = None

    @property
    def difference(self) -> float:
        return self.after - self.before
