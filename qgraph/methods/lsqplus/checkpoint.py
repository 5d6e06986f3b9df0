"""An unfinished training on disk: one file, written whole or not at all."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qgraph.errors import DataError
from qgraph.methods.lsqplus.weight_quantizer import Floats
from qgraph.running.files import write_atomically


@dataclass(slots=True, kw_only=True)
class State:
    """Everything that the rest of a training depends on."""

    values: Floats
    optimiser: dict[str, Floats]
    best: Floats
    best_epoch: int = 0
    step: int = 0
    losses: list[float]
    """Of the steps of the running epoch."""
    epochs: list[dict[str, float | None]]
    """What was measured after every epoch, the first before any step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`identity` names model, plan, settings, seed and data; what another training left is refused."""

    folder: Path
    identity: str

    @property
    def path(self) -> Path:
        return self.folder / "training.npz"

    def save(self, state: State) -> None:
        described = {
            "identity": self.identity,
            "step": state.step,
            "best_epoch": state.best_epoch,
            "losses": state.losses,
            "epochs": state.epochs,
        }
        arrays = {f"optimiser:{name}": array for name, array in state.optimiser.items()}
        arrays |= {"values": state.values, "best": state.best}
        buffer = io.BytesIO()
        np.savez(buffer, state=np.frombuffer(json.dumps(described).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, buffer.getvalue())

    def load(self) -> State | None:
        """What was saved, or None. Raises `DataError` for a file of another training, or one that cannot be read."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path) as saved:
                described = json.loads(saved["state"].tobytes())
                arrays = {name: saved[name] for name in saved if name != "state"}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} is no checkpoint of a training: {error}; remove it") from error
        if described["identity"] != self.identity:
            raise DataError(
                f"{self.path} belongs to a training of another model, with other settings, or on other data: "
                f"give another folder with --resume, or remove this one"
            )
        return State(
            values=arrays["values"],
            best=arrays["best"],
            optimiser={n.removeprefix("optimiser:"): a for n, a in arrays.items() if n.startswith("optimiser:")},
            best_epoch=described["best_epoch"],
            step=described["step"],
            losses=described["losses"],
            epochs=described["epochs"],
        )
