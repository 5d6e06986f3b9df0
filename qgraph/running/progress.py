"""How long-running stages tell how far they are; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Tells that `units` more are done, with a `note` on how it goes (a loss, an accuracy)."""

    def __call__(self, units: int, note: str = "") -> None: ...


class Progress(Protocol):
    """Shows stages to a person; the command line passes one made with rich."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Enter a stage of `total` units (None: unknown)."""


class Silent:
    """Shows nothing."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda units, note="": None


SILENT: Progress = Silent()
