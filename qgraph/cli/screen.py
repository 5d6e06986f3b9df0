"""The terminal behind stderr, and lines that fit a terminal."""

from __future__ import annotations

import functools
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@functools.cache
def stderr() -> Console:
    """The terminal for progress, warnings and errors."""
    from rich.console import Console

    return Console(stderr=True)


def wrapped(console: Console, text: str) -> str:
    """Lines that a terminal need not break within words; what goes to a file or another program stays as it is."""
    if not console.is_terminal:
        return text
    lines = (
        textwrap.wrap(line, console.width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
    return "\n".join("\n".join(parts) for parts in lines)
