"""How plans and results look: tables, pictures and pages are a floor above, and only who looks at one goes up.

Plans and jobs do not import reports. What a user sees of them in a notebook is drawn there all the same, so they ask
for it here when they are shown, and the module that draws it is imported then.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol


class Page(Protocol):
    """A report that a notebook shows: the page as `html`, which `save` writes to a file."""

    html: str

    def save(self, path: str | Path) -> None: ...

    def _repr_html_(self) -> str: ...


def drawn_by(module: str) -> Any:
    """The module of `qgraph.report` that draws something."""
    return importlib.import_module(f"qgraph.report.{module}")
