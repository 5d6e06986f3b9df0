"""Latencies that are foretold for plans, beside those that are measured of their files.

`python -m benchmarks.foretold [FOLDER] [--batches 1 32] [--limit 8] [--json OUT.json]`: shared networks and those of
FOLDER (see `benchmarks.real`) get a plan by `--method minmax`; its latency on one thread, relative to the float model,
is foretold from kernel times, then its file is made and timed. Both models run alone, in blocks that take turns, for
some seconds: the least of all runs counts, because other processes only add to it. A network that has no such batch is
left out.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import qgraph
from benchmarks import real
from benchmarks.common import CIFAR, arguments, images, report, shared
from benchmarks.real_steps import preprocessing_of
from qgraph.assess.foretold import Foreteller
from qgraph.errors import QGraphError
from qgraph.graph.sites import GraphView
from qgraph.running.profile import least_seconds
from qgraph.running.sessions import Session

RUNS, BLOCKS, SECONDS = 6, 2, 6.0  # in a block; blocks at least; seconds, unless they take longer
WITHIN = 0.15


def networks(folder: Path | None) -> Iterator[tuple[str, Path, Any, dict[str, Any]]]:
    """Name, file, samples and how they are read."""
    pictures, _ = images("cifar10_train20k", 256)
    for path in sorted(shared("models").glob("cifar10_*.onnx")):
        yield path.stem, path, pictures, {"preprocessing": CIFAR}
    for one in real.networks(folder) if folder is not None else ():
        if "options" not in one.settings:
            yield one.name, one.model, one.calibration, {"preprocessing": preprocessing_of(one.settings)}


def measured(sessions: list[Session], feeds: Any) -> float:
    """The time of the second session relative to the first."""
    least, blocks, begun = [np.inf, np.inf], 0, time.perf_counter()
    while blocks < BLOCKS or time.perf_counter() - begun < SECONDS:
        for index, session in enumerate(sessions):
            least[index] = min(least[index], least_seconds(session, feeds, runs=RUNS))
        blocks += 1
    return least[1] / least[0]


def batch_of(size: int, samples: qgraph.Dataset) -> dict[str, Any] | None:
    """That many samples; None where there are fewer, or the model takes no such batch."""
    first = next(iter(samples.batches(size)))
    return dict(first.feeds) if first.count == size else None


def rows(name: str, path: Path, data: Any, reading: dict[str, Any], options: argparse.Namespace) -> Iterator[Any]:
    try:
        limit = max(options.limit, 2 * max(options.batches))  # some are held out
        result = qgraph.quantize(path, data, method="minmax", measure=False, guard="off", limit=limit, **reading)
    except QGraphError as error:
        empty = dict.fromkeys(("batch", "foretold", "measured", "error %"))
        yield {"network": name, **empty, "why": str(error)[:60]}
        return
    view = GraphView(result.net)
    assert result.samples is not None
    for size in options.batches:
        try:
            feeds = batch_of(size, result.samples)
            if feeds is None:
                continue
            foretold = Foreteller(view, feeds)(result.plan).ratio
            ratio = measured([Session(m, threads=1) for m in (result.net.ir_model, result.model)], feeds)
        except QGraphError:
            continue
        known = np.isfinite(foretold)
        yield {
            "network": name,
            "batch": size,
            "foretold": foretold if known else None,
            "measured": ratio,
            "error %": 100 * (foretold / ratio - 1) if known else None,
            "why": "" if known else "a kernel does not run alone",
        }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="real networks and their samples")
        parser.add_argument("--batches", nargs="*", type=int, default=(1, 32), metavar="N", help="batch sizes")
        parser.add_argument("--limit", type=int, default=8, metavar="N", help="samples that calibrate")
        parser.add_argument("--only", nargs="*", metavar="NAME", help="networks, by name")

    given = arguments(__doc__, add)
    warnings.simplefilter("ignore")
    found = []
    for name, path, data, reading in networks(given.folder):
        if not given.only or name in given.only:
            for row in rows(name, path, data, reading, given):
                found.append(row)
                print(row, flush=True)
                report("Latency relative to float, foretold and measured", found, json_path=given.json)
    errors = [abs(row["error %"]) for row in found if row["error %"] is not None]
    print(f"{sum(e <= 100 * WITHIN for e in errors)} of {len(errors)} within {WITHIN:.0%}")


if __name__ == "__main__":
    main()
