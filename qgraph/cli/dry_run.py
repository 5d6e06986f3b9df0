"""`--dry-run`: begin a job, write nothing, and say how long all of it takes on some numbers of workers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qgraph.cli import console
from qgraph.cli.help import grouped

if TYPE_CHECKING:
    from qgraph.running.estimate import Estimate, Stage

F = TypeVar("F", bound=Callable[..., Any])
WORKERS = (1, 2, 5, 20, 100)


def dry_run_option(*written: str) -> Callable[[F], F]:
    """The option `--dry-run`, for a command whose parameters `written` name the files that it writes.

    With it, the command runs on this machine, writes into a folder that is removed, and shows nothing of its own.
    """

    def decorate(f: F) -> F:
        @functools.wraps(f)
        def command(*arguments: Any, dry_run: bool, **options: Any) -> None:
            if not dry_run:
                f(*arguments, **options)
                return
            estimate = _begin(f, arguments, options, written)
            if options["as_json"]:
                console.show_json({"workers": list(WORKERS), "stages": [_described(one) for one in estimate.stages]})
            elif not options["quiet"]:
                _show(estimate)

        text = "Begin, write nothing, and say how long the whole job takes on some numbers of workers."
        return grouped("Running", click.option("--dry-run", is_flag=True, help=text))(command)  # type: ignore[return-value]

    return decorate


def _begin(f: Callable[..., Any], arguments: Any, options: dict[str, Any], written: Sequence[str]) -> Estimate:
    """Run a command until the rest of it is known."""
    import qmath
    from qgraph.running.estimate import Enough, Estimate

    estimate = Estimate(threads=options["threads"] or qmath.get_threads())
    with TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        changed = {"executor": "local", "resume": None, "as_json": False, "quiet": True}
        changed |= {name: os.path.join(folder, name) for name in written if options[name] is not None}
        known = {name: value for name, value in changed.items() if name in options}
        with console.watched_by(estimate), suppress(Enough), redirect_stdout(nowhere):
            f(*arguments, **{**options, **known})
    return estimate


def _described(stage: Stage) -> dict[str, Any]:
    known = {"stage": stage.title, "done": stage.done, "total": stage.total, "pieces": stage.pieces}
    return known | {"seconds": [round(stage.on(workers), 2) for workers in WORKERS]}


def _show(estimate: Estimate) -> None:
    rows = console.table("Seconds on so many workers", "stage", "begun", "pieces", *map(str, WORKERS))
    for stage in estimate.stages:
        begun = f"{stage.done:,}" if stage.total is None else f"{stage.done:,} of {stage.total:,}"
        rows.add_row(stage.title, begun, f"{stage.pieces:,}", *(f"{stage.on(workers):,.1f}" for workers in WORKERS))
    ended = "The job was ended there, and later stages are not known" if estimate.ended else "The job came to its end"
    console.show(rows, f"{ended}; nothing was written. Messages to workers are not counted.")
