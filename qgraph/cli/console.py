"""Terminal output: tables on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import functools
import json
import logging
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, TextIO

import click

from qgraph.running.progress import SILENT, Advance, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PRIOR_REJECTED = (
    "* prior rejected: neither Laplace nor Gaussian describes what the layer reads, at these bits to 0.25 dB"
)


@functools.cache
def stderr() -> Console:
    """The terminal for progress, warnings and errors."""
    from rich.console import Console

    return Console(stderr=True)


def say(*parts: str, style: str | None = None) -> None:
    """Print text on stderr as it is, without wrapping it."""
    stderr().print(*parts, style=style, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """Progress bars on stderr."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=stderr(), transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda units, note="": bars.update(task, advance=units, description=f"{title} {note}".rstrip())


@dataclass(slots=True, kw_only=True)
class Minutes:
    """A line on stderr for every minute (`interval` seconds) that a job takes, where stderr is not a terminal."""

    interval: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _told: float = field(init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        self._began = self._told = self.clock()

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Advance]:
        done = 0

        def advance(units: int, note: str = "") -> None:
            nonlocal done
            with self._lock:
                done += units
                now = self.clock()
                if now - self._told >= self.interval:
                    self._told = now
                    amount = f"{done}" if total is None else f"{done} of {total}"
                    parts = [f"{title}: {amount}", note, f"{now - self._began:.0f} s"]
                    line = ", ".join(part for part in parts if part)
                    say(line)

        yield advance


def progress(quiet: bool) -> Progress:
    """Progress bars if stderr is a terminal, else a line a minute; nothing if `quiet`."""
    if quiet:
        return SILENT
    if not stderr().is_terminal:
        return Minutes()
    log = logging.getLogger("qmath.kernels")
    if not any(isinstance(handler, _Lines) for handler in log.handlers):
        log.addHandler(_Lines())
        log.setLevel(logging.INFO)
    return Bars()


class _Lines(logging.Handler):
    """Shows what is logged as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), style="dim")


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text and whose others are numbers."""
    from rich.table import Table

    result = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return result


def show(*parts: Any) -> None:
    """Print tables or lines on stdout."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # (| head): `main` knows what to do

    console = Output()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(part)


def next_step(why: str, *words: str) -> None:
    """Print on stdout what a user may want to do next: the words of a command line, and why."""
    show(f"next: {shlex.join(('qgraph', *words))}  ({why})")


def show_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=1, allow_nan=False))


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A readable replacement for `warnings.showwarning`."""
    if issubclass(category, (UserWarning, RuntimeWarning)) and not issubclass(category, DeprecationWarning):
        say("warning:", str(message), style="yellow")


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def silence_warnings() -> None:
    warnings.simplefilter("ignore")
