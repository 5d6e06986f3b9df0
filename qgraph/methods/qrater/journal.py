"""The journal of a search: every evaluation and every choice, on disk before it counts.

One SQLite file. What was written survives the process; a search that is started again finds its scores and choices
there and ends where it would have ended. `header` names what the search is of: another's journal is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import QGraphError

VERSION = "3"
_TABLES = (
    "CREATE TABLE IF NOT EXISTS header (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS scores (candidate TEXT, batch INTEGER, scores BLOB, PRIMARY KEY (candidate, batch))",
    "CREATE TABLE IF NOT EXISTS choices (stage TEXT PRIMARY KEY, content TEXT NOT NULL)",
)


class JournalError(QGraphError):
    """The journal cannot be read or written, or belongs to another search."""


class Journal:
    """Scores by candidate and batch, choices by stage. With `path` None nothing is kept on disk."""

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path = path
        self.found = 0  # scores read back
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            for statement in _TABLES:
                self._file.execute(statement)
            kept = dict(self._file.execute("SELECT name, value FROM header"))
        except (sqlite3.Error, OSError) as error:
            raise JournalError(f"cannot open the journal {path}: {error}; give another folder with --resume") from error
        self._check(kept, {name: json.dumps(value, sort_keys=True) for name, value in header.items()})

    def _check(self, kept: dict[str, str], wanted: dict[str, str]) -> None:
        if not kept:
            for item in ({"version": json.dumps(VERSION)} | wanted).items():
                self._write("INSERT INTO header VALUES (?, ?)", item)
            return
        for name, value in ({"version": json.dumps(VERSION)} | wanted).items():
            if kept.get(name) != value:
                raise JournalError(
                    f"{self.path} is the journal of another search: its {name} is {_short(kept.get(name))}, here it is "
                    f"{_short(value)}; give another folder with --resume, or remove it"
                )

    def scores(self, candidate: str, batch: int) -> NDArray[np.float32] | None:
        """Scores of a candidate on a batch, or None where it was not measured."""
        query = "SELECT scores FROM scores WHERE candidate = ? AND batch = ?"
        row = self._file.execute(query, (candidate, batch)).fetchone()
        return None if row is None else np.frombuffer(row[0], np.float32)

    def add_scores(self, candidate: str, scores: Mapping[int, NDArray[np.float32]]) -> None:
        """Keep the scores of a candidate on some batches."""
        rows = [(candidate, batch, values.tobytes()) for batch, values in scores.items()]
        places = ", ".join(["(?, ?, ?)"] * len(rows))
        self._write(f"INSERT OR IGNORE INTO scores VALUES {places}", tuple(value for row in rows for value in row))

    def choice(self, stage: str) -> dict[str, Any] | None:
        """What was chosen at a stage, or None."""
        row = self._file.execute("SELECT content FROM choices WHERE stage = ?", (stage,)).fetchone()
        return None if row is None else json.loads(row[0])

    def add_choice(self, stage: str, content: Mapping[str, Any]) -> None:
        self._write("INSERT OR REPLACE INTO choices VALUES (?, ?)", (stage, json.dumps(content)))

    def close(self) -> None:
        self._file.close()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        try:
            self._file.execute(statement, values)
        except sqlite3.Error as error:
            raise JournalError(
                f"cannot write the journal {self.path}: {error}; what it holds stays usable: make room and give the "
                f"same command again to go on"
            ) from error


def compact(path: Path) -> None:
    """Keep the choices of a finished search alone, in one file: enough to replay it."""
    file = sqlite3.connect(path, isolation_level=None)
    file.execute("DELETE FROM scores")
    file.execute("PRAGMA journal_mode = DELETE")
    file.execute("VACUUM")
    file.close()


def _short(text: str | None) -> str:
    return "missing" if text is None else text if len(text) <= 60 else f"{text[:57]}..."
