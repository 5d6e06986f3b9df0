"""What the benchmarks share: paths of models and data, timing in turn, and the display of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from qgraph.samples.preprocessing import Preprocessing

CIFAR = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def shared(*parts: str) -> Path:
    """A file of the shared models and data, beside the checkout or in $QGRAPH_SHARED."""
    root = Path(os.environ.get("QGRAPH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = root.joinpath(*parts)
    if not path.exists():
        sys.exit(f"this benchmark needs {path}: set QGRAPH_SHARED to the folder with models/ and data/")
    return path


def images(name: str, limit: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of `data/NAME.npz`."""
    with np.load(shared("data", f"{name}.npz")) as archive:
        return archive["images"][:limit], archive["labels"][:limit]


def timed(job: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds of one call."""
    start = clock()
    job()
    return clock() - start


def in_turn(
    jobs: Mapping[str, Callable[[], Any]],
    *,
    runs: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The median seconds of every job; jobs take turns, so that a drifting machine affects all alike.

    Jobs of one thread may be timed by `time.thread_time`, which leaves out other processes.
    """
    seen: dict[str, list[float]] = {name: [] for name in jobs}
    for index in range(runs + warmup):
        for name, job in jobs.items():
            seconds = timed(job, clock)
            if index >= warmup:
                seen[name].append(seconds)
    return {name: median(times) for name, times in seen.items()}


def arguments(description: str | None, *add: Callable[[argparse.ArgumentParser], Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: all cores)")
    for option in add:
        option(parser)
    return parser.parse_args()


def report(title: str, rows: Sequence[Mapping[str, Any]], *, json_path: str | None = None) -> None:
    """Print the rows as a table, and write them with a description of the machine."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    if json_path:
        keep(title, rows, json_path)


def keep(title: str, rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write rows with a description of the machine."""
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {"title": title, "machine": machine, "rows": list(rows)}
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
