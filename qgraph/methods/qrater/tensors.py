"""Keep the tensors of many batches, in memory up to a limit and in files beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Tensors:
    """Arrays by name and batch; beyond `limit` bytes, they are in a temporary folder and mapped when read."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = self.spilled = 0
        self._arrays: dict[str, dict[int, NDArray[Any]]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self) -> set[str]:
        return set(self._arrays)

    def get(self, name: str, batch: int) -> NDArray[Any]:
        return self._arrays[name][batch]

    def put(self, name: str, batch: int, array: NDArray[Any]) -> None:
        if self.held + array.nbytes > self.limit:
            array = self._on_disk(array)
            self.spilled += array.nbytes
        else:
            self.held += array.nbytes
        self._arrays.setdefault(name, {})[batch] = array

    def keep(self, names: Collection[str]) -> None:
        """Forget every other tensor."""
        for name in self.names() - set(names):
            for array in self._arrays.pop(name).values():
                if isinstance(array, np.memmap):
                    self.spilled -= array.nbytes
                    Path(str(array.filename)).unlink(missing_ok=True)
                else:
                    self.held -= array.nbytes

    def only(self, names: Collection[str]) -> Tensors:
        """A copy with these tensors only, in memory, to send to another process."""
        chosen = Tensors(sum(a.nbytes for name in names for a in self._arrays[name].values()))
        for name in names:
            for batch, array in self._arrays[name].items():
                chosen.put(name, batch, np.array(array))
        return chosen

    def close(self) -> None:
        """Forget all tensors and delete the files."""
        self.keep(())
        if self._folder is not None:
            self._folder.cleanup()

    def _on_disk(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qgraph-search-")
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
        return mapped
