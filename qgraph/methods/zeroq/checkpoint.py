"""Unfinished distillations on disk: one file per batch, written whole or not at all."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qgraph.errors import DataError
from qgraph.methods.zeroq.adam import Adam
from qgraph.methods.zeroq.objective import Arrays
from qgraph.running.files import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """The folder of one distillation. `identity` names model, configuration and seed; another's files are refused."""

    folder: Path
    identity: str

    def open(self) -> None:
        """Make the folder, or check that it belongs to this distillation."""
        self.folder.mkdir(parents=True, exist_ok=True)
        label = self.folder / "distillation.json"
        if not label.exists():
            write_atomically(label, json.dumps({"identity": self.identity}).encode())
        elif json.loads(label.read_text()).get("identity") != self.identity:
            raise DataError(
                f"{self.folder} holds a distillation of another model, configuration or seed: "
                f"give another folder, or remove this one"
            )

    def save(self, index: int, batch: Arrays, optimisers: dict[str, Adam], losses: list[float]) -> None:
        arrays: dict[str, np.ndarray] = {"losses": np.asarray(losses)}
        for name, x in batch.items():
            arrays[f"x:{name}"] = x
            arrays |= {f"{key}:{name}": value for key, value in optimisers[name].state().items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(self._path(index), buffer.getvalue())

    def restore(self, index: int) -> tuple[Arrays, dict[str, Adam], list[float]] | None:
        """The state of a batch, or None if none was saved."""
        if not self._path(index).exists():
            return None
        with np.load(self._path(index)) as saved:
            names = [key.removeprefix("x:") for key in saved if key.startswith("x:")]
            batch = {name: saved[f"x:{name}"] for name in names}
            optimisers = {}
            for name in names:
                state = {key.removesuffix(f":{name}"): saved[key] for key in saved if key.endswith(f":{name}")}
                optimisers[name] = Adam.restored(state)
            return batch, optimisers, saved["losses"].tolist()

    def _path(self, index: int) -> Path:
        return self.folder / f"batch-{index:05d}.npz"
