"""Completed pieces of a long job on disk: a job that was killed continues where it was and ends with the same bytes.

One SQLite file in the folder of `--resume` serves every stage of a job. A piece is there whole or not at all, and is on
disk before `put` returns. The process that works on a folder holds a lock on it, which the system releases when the
process is killed. Each stage records what determines its results (`identity`), and the pieces of another job are
refused. A digest stored with every piece reveals damage.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from threading import Lock, RLock
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import StoreError
from qgraph.running.wording import option

FILE = "checkpoints.sqlite"
VERSION = 1
_APPLICATION = 0x7147_7068  # "qGph": distinguishes these files from those of other programs
_BLOCK = 1 << 28  # bytes of an array per row: SQLite's rows end at a billion
_LONG = 2000  # characters beyond which a digest replaces a description
_WAIT = 1.0  # seconds to wait for a process that is about to end
_TABLES = (
    "CREATE TABLE stages (stage TEXT PRIMARY KEY, identity TEXT NOT NULL)",
    "CREATE TABLE pieces (stage TEXT, key TEXT, content TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (stage, key))",
    "CREATE TABLE arrays (stage TEXT, key TEXT, name TEXT, block INTEGER, dtype TEXT NOT NULL, shape TEXT NOT NULL, "
    "data BLOB NOT NULL, PRIMARY KEY (stage, key, name, block))",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The result of one piece of a job: anything that JSON holds, floats to their last bit, and arrays by name."""

    content: Any = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def digest(self, text: str) -> bytes:
        """A digest of the arrays and of the content, given as its JSON `text`."""
        found = blake2b(text.encode(), digest_size=16)
        for name, array in sorted(self.arrays.items()):
            found.update(f"{name} {array.dtype.str} {array.shape}".encode())
            found.update(_bytes(array).data)
        return found.digest()


class Store:
    """The pieces of one stage of a job; made by `open_store`."""

    def __init__(self, file: _File, stage: str) -> None:
        self._file, self._stage = file, stage

    @property
    def is_kept(self) -> bool:
        """Whether the pieces are on disk, and so available to a later process."""
        return self._file.path is not None

    def done(self) -> set[str]:
        """The keys of the pieces that are done."""
        return {str(row[0]) for row in self._file.read("SELECT key FROM pieces WHERE stage = ?", self._stage)}

    def get(self, key: str) -> Piece | None:
        """A piece, or None if it is not done yet."""
        found = self._file.read("SELECT content, digest FROM pieces WHERE stage = ? AND key = ?", self._stage, key)
        if not found:
            return None
        text, digest = found[0]
        try:
            piece = Piece(content=json.loads(text), arrays=self._arrays(key))
            is_whole = piece.digest(text) == digest
        except (ValueError, TypeError, AttributeError):
            is_whole = False
        if not is_whole:
            self._file.damaged(f"its piece '{key}' is not what was written")
        return piece

    def put(self, key: str, content: Any = None, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Store a piece, replacing an earlier one of that key."""
        self.put_all({key: Piece(content=content, arrays=arrays or {})})

    def put_all(self, pieces: Mapping[str, Piece]) -> None:
        """Store several pieces at once: all of them, or none if the process dies before this returns."""
        with self._file.transaction() as execute:
            for key, piece in pieces.items():
                text = json.dumps(piece.content)
                execute("DELETE FROM arrays WHERE stage = ? AND key = ?", self._stage, key)
                row = (self._stage, key, text, piece.digest(text))
                execute("INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?)", *row)
                for name, array in piece.arrays.items():
                    self._put_array(execute, key, name, array)

    def _put_array(self, execute: Any, key: str, name: str, array: NDArray[Any]) -> None:
        data = _bytes(array)
        for block, start in enumerate(range(0, max(len(data), 1), _BLOCK)):
            described = (array.dtype.str, json.dumps(array.shape))
            values = (self._stage, key, name, block, *described, data[start : start + _BLOCK].tobytes())
            execute("INSERT INTO arrays VALUES (?, ?, ?, ?, ?, ?, ?)", *values)

    def _arrays(self, key: str) -> dict[str, NDArray[Any]]:
        query = "SELECT name, dtype, shape, data FROM arrays WHERE stage = ? AND key = ? ORDER BY name, block"
        blocks: dict[str, list[tuple[str, str, bytes]]] = {}
        for name, *block in self._file.read(query, self._stage, key):
            blocks.setdefault(name, []).append(cast(tuple[str, str, bytes], tuple(block)))
        return {
            name: np.frombuffer(bytearray().join(data for _, _, data in parts), parts[0][0]).reshape(
                json.loads(parts[0][1])
            )
            for name, parts in blocks.items()
        }


@contextmanager
def hold(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Lock the store in `folder` against other processes; a job does so before its work begins.

    Stages of this process can open it while it is held. Without a folder there is nothing to lock.
    """
    if folder is None:
        yield
        return
    path = Path(folder)
    made = [place for place in (path / FILE, path) if not place.exists()]
    in_vain = False
    try:
        with _opened(path) as file:
            try:
                yield
            except Exception:
                in_vain = not file.read("SELECT 1 FROM pieces LIMIT 1")
                raise
    finally:
        if in_vain:  # a job that fails before it has done anything leaves nothing behind
            for place in made:
                place.rmdir() if place.is_dir() else place.unlink(missing_ok=True)


@contextmanager
def open_store(folder: str | os.PathLike[str] | None, stage: str, **decisive: object) -> Iterator[Store]:
    """Open the pieces of `stage` in `folder`, continuing earlier ones; without a folder they are kept in memory only.

    Args:
        folder: the folder of `--resume`; it is created if necessary.
        stage: a name for the kind of pieces.
        decisive: everything that determines the results, by name; see `identity`.

    Raises:
        StoreError: When the file belongs to another job, is open in another process, is damaged or cannot be written.
    """
    if folder is None:
        file = _File(None)
        try:
            yield Store(file, stage)
        finally:
            file.close()
        return
    with _opened(Path(folder)) as file:
        file.check(stage, identity(**decisive))
        yield Store(file, stage)


def identity(**decisive: object) -> dict[str, str]:
    """What determines a job's results, by name, as text: equal if and only if all values are.

    Values are numbers, strings, arrays, collections and dataclasses of these, and anything that identifies its content
    by an attribute `digest`. Long ones are replaced by a digest.
    """
    texts = {name: json.dumps(_plain(value), sort_keys=True) for name, value in decisive.items()}
    return {name: text if len(text) <= _LONG else sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _plain(value: Any) -> Any:
    """A value in a form that JSON holds."""
    if hasattr(value, "digest"):
        return str(value.digest)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, sha256(_bytes(value).data).hexdigest()]
    if isinstance(value, Mapping):
        return {str(name): _plain(content) for name, content in value.items()}
    if isinstance(value, Sequence):
        return [_plain(content) for content in value]
    if dataclasses.is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} has no description of its content")


class _File:
    """An open file, shared by all threads of this process; in memory when `path` is None."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.users = path, 0
        self._lock = RLock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, OSError) as error:
            self._not_opened(error)
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.close()
            self._not_opened(error)
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        """Lock the file, and create the tables or check that they are there."""
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        application, version, tables = (
            self._connection.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
        )
        if not (application or tables):
            with self.transaction() as execute:
                for statement in (
                    *_TABLES,
                    f"PRAGMA application_id = {_APPLICATION}",
                    f"PRAGMA user_version = {VERSION}",
                ):
                    execute(statement)
            return
        if application != _APPLICATION:
            raise StoreError(f"{self.path} was not written by qgraph: give another folder for {option('resume')}")
        if version != VERSION:
            raise StoreError(
                f"{self.path} has schema {version}, this version of qgraph reads schema {VERSION}: give another folder "
                f"for {option('resume')}, or remove it"
            )
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            self.damaged(found)

    def check(self, stage: str, wanted: Mapping[str, str]) -> None:
        """Record the identity of a stage, or raise if its pieces belong to another job."""
        row = self.read("SELECT identity FROM stages WHERE stage = ?", stage)
        if not row:
            with self.transaction() as execute:
                execute("INSERT INTO stages VALUES (?, ?)", stage, json.dumps(wanted))
            return
        try:
            kept = dict(json.loads(row[0][0]))
        except (ValueError, TypeError) as error:
            self.damaged(str(error))
        for name, value in wanted.items():
            if kept.get(name) != value:
                raise StoreError(
                    f"{self.path} belongs to another job: of its {stage}, the {name} is {_short(kept.get(name))}, here "
                    f"it is {_short(value)}; give another folder for {option('resume')}, or remove it"
                )

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                self.damaged(str(error))

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Statements that take effect together or not at all."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield lambda statement, *values: self._connection.execute(statement, values)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._undo()
                raise StoreError(
                    f"cannot write the checkpoints {self.path}: {error}; what they hold stays usable: free space and "
                    f"repeat the command to continue"
                ) from error
            except BaseException:
                self._undo()
                raise

    def close(self) -> None:
        self._connection.close()

    def damaged(self, why: str) -> NoReturn:
        """Raise the error for content that was not written like this."""
        raise StoreError(
            f"{self.path} is damaged: {why}; remove it and start again, or give another folder for {option('resume')}"
        )

    def _undo(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # the file is closed, or the next statement fails in the same way

    def _not_opened(self, error: Exception) -> NoReturn:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StoreError(
                f"{self.path} is in use by another process: wait until it ends, or give another folder for "
                f"{option('resume')}"
            ) from error
        raise StoreError(
            f"cannot open the checkpoints {self.path}: {error}; give another folder for {option('resume')}"
        ) from error


_files: dict[Path, _File] = {}
_files_lock = Lock()


@contextmanager
def _opened(folder: Path) -> Iterator[_File]:
    """The file of a folder, opened by the first user and closed by the last."""
    path = folder.resolve() / FILE
    with _files_lock:
        file = _files[path] if path in _files else _files.setdefault(path, _File(path))
        file.users += 1
    try:
        yield file
    finally:
        with _files_lock:
            file.users -= 1
            if not file.users:
                del _files[path]
                file.close()


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _short(text: str | None) -> str:
    return "missing" if text is None else text if len(text) <= 60 else f"{text[:57]}..."
