"""The state of an unfinished training, as kept on disk."""

from __future__ import annotations

from dataclasses import dataclass

from qgraph.methods.lsqplus.weight_quantizer import Floats
from qgraph.running.store import Store

_KEY = "state"


@dataclass(slots=True, kw_only=True)
class State:
    """Everything on which the rest of a training depends."""

    values: Floats
    optimiser: dict[str, Floats]
    best: Floats
    best_epoch: int = 0
    step: int = 0
    losses: list[float]
    """The losses of the current epoch, one per step."""
    epochs: list[dict[str, float | None]]
    """What was measured before the first step, then after every epoch."""

    def save(self, store: Store) -> None:
        """Write the state to the store, in place of an earlier one."""
        arrays = {f"optimiser {name}": array for name, array in self.optimiser.items()}
        arrays |= {"values": self.values, "best": self.best}
        names = ("step", "best_epoch", "losses", "epochs")
        store.put(_KEY, {name: getattr(self, name) for name in names}, arrays)

    @classmethod
    def restored(cls, store: Store) -> State | None:
        """The saved state, or None."""
        piece = store.get(_KEY)
        if piece is None:
            return None
        optimiser = {n.removeprefix("optimiser "): a for n, a in piece.arrays.items() if n.startswith("optimiser ")}
        return cls(values=piece.arrays["values"], best=piece.arrays["best"], optimiser=optimiser, **piece.content)
