"""Terminal output: tables on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TextIO

import click

from qgraph.cli.clock import elapsed
from qgraph.cli.log import LOG, Logged, verbose
from qgraph.cli.screen import stderr, wrapped
from qgraph.cli.tables import Table
from qgraph.running.progress import SILENT, Advance, Progress

WIDE = 100_000  # characters: no limit

PRIOR_REJECTED = (
    "* prior rejected: neither Laplace nor Gaussian describes what the layer reads, at these bits to 0.25 dB"
)


def say(*parts: str, style: str | None = None, level: int = logging.DEBUG, log: bool = True) -> None:
    """Print text on stderr, wrapped at words if that is a terminal, and log it."""
    text = " ".join(parts)
    if log:
        LOG.log(level, text)
    console = stderr()
    console.print(wrapped(console, text), style=style, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """Progress bars on stderr."""

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, pieces: int = 1) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=stderr(), transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda units, note="": bars.update(task, advance=units, description=f"{title} {note}".rstrip())


@dataclass(slots=True, kw_only=True)
class Minutes:
    """A line on stderr for every minute (`interval` seconds) that a job takes, where stderr is not a terminal.

    The seconds count from the start of the process.
    """

    interval: float = 60.0
    clock: Callable[[], float] = elapsed
    _told: float = field(init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        self._told = self.clock()

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, pieces: int = 1) -> Iterator[Advance]:
        done = 0

        def advance(units: int, note: str = "") -> None:
            nonlocal done
            with self._lock:
                done += units
                now = self.clock()
                if now - self._told >= self.interval:
                    self._told = now
                    amount = f"{done}" if total is None else f"{done} of {total}"
                    parts = [f"{title}: {amount}", note, f"{now:.0f} s"]
                    line = ", ".join(part for part in parts if part)
                    say(line)

        yield advance


_watchers: list[Progress] = []


@contextmanager
def watched_by(watcher: Progress) -> Iterator[None]:
    """Report stages to `watcher` instead of showing them."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.pop()


def progress(quiet: bool) -> Progress:
    """Progress bars if stderr is a terminal, else a line a minute; nothing if `quiet`. Stages are logged."""
    if _watchers:
        return _watchers[-1]
    if quiet:
        return Logged(SILENT)
    if not stderr().is_terminal:
        return Logged(Minutes())
    kernels = logging.getLogger("qmath.kernels")
    if not any(isinstance(handler, _Lines) for handler in kernels.handlers):
        kernels.addHandler(_Lines())
        kernels.setLevel(logging.INFO)
    return Logged(Bars())


class _Lines(logging.Handler):
    """Shows what is logged as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), style="dim", log=False)


def table(title: str, *columns: str, left: int = 1, text: Sequence[int] = (), heaviest: str = "") -> Table:
    """A table whose first `left` columns are text and whose others are numbers; see `Table`."""
    return Table(title=title, columns=columns, left=left, text=text, heaviest=heaviest)


def show(*parts: Table | str) -> None:
    """Print tables or lines on stdout. Lines and tables fit a terminal; in files and pipes each row is one line."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # (| head): `main` knows what to do

    console = Output()
    fits = console.is_terminal or "COLUMNS" in os.environ
    if not fits:
        console = Output(width=WIDE)  # rich takes 80 characters where there is no terminal
    for part in parts:
        if isinstance(part, str):
            LOG.debug(part)
            console.print(wrapped(console, part), markup=False, highlight=False, soft_wrap=True)
            continue
        LOG.debug(as_text(part))
        for piece in part.lay_out(console.width if fits else None, whole=verbose()):
            console.print(piece, crop=False)


def as_text(part: Table) -> str:
    """All rows of a table, as a log keeps them."""
    rows = [tuple(part.columns), *(tuple(map(str, row)) for row in part.rows)]
    return "\n".join([part.title, *("\t".join(row) for row in rows)])


def next_step(why: str, *words: str) -> None:
    """Print on stdout what a user may want to do next: the words of a command line, whole for copying, and why."""
    from rich.console import Console

    command, console = f"next: {shlex.join(('qgraph', *words))}", Console()
    together = not console.is_terminal or len(command) + len(why) + 4 <= console.width
    LOG.debug(f"{command}  ({why})")
    lines = (f"{command}  ({why})",) if together else (command, f"      ({why})")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


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
        say("warning:", str(message), style="yellow", level=logging.WARNING)


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def silence_warnings() -> None:
    warnings.simplefilter("ignore")
