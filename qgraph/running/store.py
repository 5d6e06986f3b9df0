"""Finished pieces of a long job on disk, one JSON line each, so that a job that was killed goes on where it was.

A line is on the disk before `add` returns; a line that was cut off is dropped when the journal is opened again. Floats
are written by repr, so that a job that goes on ends with the same bytes as one that was never stopped.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

from qgraph.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Journal:
    """The pieces of one job; made by `open_journal`."""

    path: Path | None
    done: dict[str, Any] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, key: str, value: Any) -> None:
        """Note that piece `key` is finished, with its JSON-serializable result."""
        with self._lock:
            self.done[key] = value
            if self.path is not None:
                _append(self.path, [key, value])


def open_journal(folder: str | os.PathLike[str] | None, name: str, *identity: object) -> Journal:
    """The journal `name` in `folder`, continued if it is there; without a folder, one that is kept in memory alone.

    `identity` is everything that decides the results (by repr). Raises `DataError` when the folder holds the journal of
    a job with another identity, or cannot be written.
    """
    if folder is None:
        return Journal(path=None)
    path = Path(folder) / f"{name}.jsonl"
    digest = sha256(repr(identity).encode()).hexdigest()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        found, length = _read(path)
        if not found:
            path.unlink(missing_ok=True)
            _append(path, digest)
            return Journal(path=path)
        if found[0] != digest:
            raise DataError(
                f"{path} belongs to a job with another model, data or options: give another folder, or remove this one"
            )
        os.truncate(path, length)
        return Journal(path=path, done=dict(found[1:]))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _append(path: Path, content: Any) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> tuple[list[Any], int]:
    """What every whole line holds, and how many bytes they take together."""
    lines: list[Any] = []
    length = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n"):
            break
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        length += len(line)
    return lines, length
