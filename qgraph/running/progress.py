"""How long-running stages report progress; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports that `units` more are done, with a `note` on the state (a loss, an accuracy)."""

    def __call__(self, units: int, note: str = "") -> None: ...


class Progress(Protocol):
    """Shows stages to a person; the command line passes one that is built on rich."""

    def stage(self, title: str, total: int | None = None, *, pieces: int = 1) -> AbstractContextManager[Advance]:
        """Enter a stage of `total` units (None: unknown), in so many `pieces` that may run apart."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, pieces: int = 1) -> Iterator[Advance]:
        yield lambda units, note="": None


SILENT: Progress = Silent()
