"""One table of a paper beside what is measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Table:
    """The number of the table in its paper, what it shows, how it was measured here, and what makes its rows."""

    number: str
    title: str
    note: str
    rows: Callable[[], Sequence[Mapping[str, Any]]]
