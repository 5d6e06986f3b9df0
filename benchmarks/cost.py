"""What `qgraph quantize MODEL -o OUT --data D` costs, beside onnxruntime's static quantization (QDQ, per channel).

`python -m benchmarks.cost FOLDER [--only NAME ...] [--repeat N]`: the networks of `benchmarks.real`, file to file,
whole processes on one core, the two tools in turn. `CPU s` is user and system time including start-up, the median of
`--repeat` runs (3); `/ static` is the median ratio of runs side by side. `MB` is the peak memory above that of a
process that runs the float file on one sample. A first run of qgraph is not counted: its kernels are compiled once per
machine, and kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.real import QGRAPH, STATIC, Network, Row, Spent, command, networks, spent, step


def measure(network: Network, repeat: int, folder: Path) -> Row:
    """One row: both tools in turn, `repeat` times."""
    calibration = folder / "calibration.npz"
    settings = json.dumps(network.settings)
    if problem := step("prepare", network.model, network.calibration, calibration, settings).problem:
        return {"network": network.name, "problem": problem}
    floats = step("once", network.model, calibration).peak
    commands = {tool: command(tool, network, folder / "small.onnx", calibration) for tool in (QGRAPH, STATIC)}
    spent(commands[QGRAPH])
    took: dict[str, list[Spent]] = {tool: [] for tool in commands}
    for _ in range(repeat):
        for tool, words in commands.items():
            took[tool].append(spent(words))
    pairs = zip(took[QGRAPH], took[STATIC], strict=True)
    peaks = {tool: max(run.peak for run in runs) - floats for tool, runs in took.items()}
    return {
        "network": network.name,
        "qgraph CPU s": median(run.seconds for run in took[QGRAPH]),
        "static CPU s": median(run.seconds for run in took[STATIC]),
        "/ static": median(ours.seconds / max(theirs.seconds, 1e-9) for ours, theirs in pairs),
        "qgraph MB": peaks[QGRAPH] / 2**20,
        "static MB": peaks[STATIC] / 2**20,
        "problem": next((run.problem for runs in took.values() for run in runs if run.problem), ""),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="NAME.onnx, NAME.calib.npz and NAME.eval.npz")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these networks")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each tool")
    given = parser.parse_args(words)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for network in networks(given.folder, given.only):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(network, given.repeat, Path(folder)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    from benchmarks.common import report

    report("What quantizing costs (promised: 0.7 of onnxruntime's time, 600 MB)", rows)


if __name__ == "__main__":
    main()
