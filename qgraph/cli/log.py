"""`-v` and `--log-file`: what a command does, as lines on stderr and in a file."""

from __future__ import annotations

import logging
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from qgraph.cli.clock import elapsed
from qgraph.cli.kinds import PATH
from qgraph.cli.screen import stderr, wrapped
from qgraph.errors import UsageError
from qgraph.running.progress import Advance, Progress

F = TypeVar("F", bound=Callable[..., Any])
LOG = logging.getLogger("qgraph")
LOGGERS = (LOG, logging.getLogger("qmath"))
PACKAGES = ("qgraph-onnx", "numpy", "scipy", "numba", "onnx", "onnx-ir", "onnxruntime")
_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_handlers: list[logging.Handler] = []
LOG.addHandler(logging.NullHandler())  # without it, Python shows warnings itself


def log_options(f: F) -> F:
    """The options `-v` and `--log-file`."""
    verbose = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_show, help="Show all rows, and what takes time."
    )
    file = click.option(
        "--log-file",
        type=PATH,
        metavar="FILE",
        expose_value=False,
        callback=_write,
        help="Append everything that is shown to a file, with times, versions and tracebacks.",
    )
    return verbose(file(f))


def verbose() -> bool:
    """Whether `-v` was given."""
    return any(isinstance(handler, _Shown) for handler in _handlers)


def begin(arguments: Sequence[str]) -> None:
    """Log what runs where, for those who read it elsewhere."""
    if not _handlers:
        return
    from importlib.metadata import PackageNotFoundError, version

    from qgraph.running.cpu import cpu_flags

    LOG.info("qgraph %s", shlex.join(arguments))
    LOG.debug("Python %s on %s, %s cores", platform.python_version(), platform.platform(), os.cpu_count())
    LOG.debug("CPU: %s", " ".join(sorted(cpu_flags())))
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            LOG.debug("%s %s", package, version(package))


def end() -> None:
    """Close the file, and forget what the command line asked for."""
    for handler in _handlers:
        for log in LOGGERS:
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)
        handler.close()
    _handlers.clear()


class Logged:
    """Shows stages as `inner` does, and logs them."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, pieces: int = 1) -> Iterator[Advance]:
        began, done, last = elapsed(), 0, ""
        LOG.debug("%s begins", title)
        with self.inner.stage(title, total, pieces=pieces) as advance:

            def count(units: int, note: str = "") -> None:
                nonlocal done, last
                done, last = done + units, note or last
                advance(units, note)

            yield count
        parts = [f"{title}: {done:,} in {elapsed() - began:.2f} s", last]
        LOG.info(", ".join(filter(None, parts)))


class _Shown(logging.Handler):
    """Shows what is logged on stderr, with the seconds since the process started."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:  # warnings and errors are shown anyhow
            text = wrapped(stderr(), f"{elapsed():7.2f} s  {record.getMessage()}")
            stderr().print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def _show(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not verbose():
        _add(_Shown(level=logging.INFO))


def _write(ctx: click.Context, option: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the log {path}: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(_FORMAT))
    _add(handler)


def _add(handler: logging.Handler) -> None:
    _handlers.append(handler)
    for log in LOGGERS:
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
