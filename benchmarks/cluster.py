"""The costs and gains of a Dask cluster: the jobs that it runs on 1, 2 and 5 workers, and the time of one message.

`python -m benchmarks.cluster [--limit 256] [--runs 1] [--workers 1 2 5]`. Scheduler and workers are processes on this
machine (loopback), one thread each. A message is an empty task that is submitted and run, and whose result is fetched.
Every job, calibration, distillation, sensitivity and search, must give the same as on one local thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import qgraph
from benchmarks.common import CIFAR, arguments, images, in_turn, report, shared, timed
from qgraph.jobs.sensitivity import measure_sensitivity
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.zeroq.config import DistillConfig
from qgraph.methods.zeroq.distill import distill
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.opset import prepare
from qgraph.running.executor import open_executor
from qgraph.samples.dataset import open_data

TASKS = 500
MEGABYTES = 16


def nothing(shared: bytes, task: int) -> int:
    return task


def main() -> None:
    options = arguments(
        __doc__,
        lambda p: p.add_argument("--model", default="cifar10_resnet20", help="one of the shared models"),
        lambda p: p.add_argument("--limit", type=int, default=256, help="samples to calibrate on"),
        lambda p: p.add_argument("--runs", type=int, default=1, help="runs of each, after a warm-up run"),
        lambda p: p.add_argument("--workers", nargs="*", type=int, default=(1, 2, 5), metavar="N", help="of a cluster"),
    )
    columns = ["one local thread", *(f"workers: {count}" for count in options.workers)]
    rows = [
        {"measured": row["measured"]} | {name: row.get(name) for name in columns}
        for row in (*_messages(), *_speed_up(options))
    ]
    report("Jobs on a Dask cluster over loopback", rows, json_path=options.json)


def _messages() -> list[dict[str, Any]]:
    """The milliseconds of an empty task, and of sending shared data, on a cluster of two workers."""
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        open_executor(f"dask:{cluster.scheduler_address}") as executor,
    ):

        def run(shared: bytes, tasks: int) -> float:
            return timed(lambda: list(executor.run(nothing, shared, range(tasks))))

        run(b"", 10)  # opens connections and imports modules
        small = min(run(b"", TASKS) for _ in range(3)) / TASKS
        one = min(run(b"", 1) for _ in range(5))
        large = min(run(b"?" * MEGABYTES * 2**20, 2) for _ in range(3))
    return [
        {"measured": f"one empty task of {TASKS}, ms", "workers: 2": 1000 * small},
        {"measured": "one empty task alone, ms", "workers: 2": 1000 * one},
        {"measured": "sharing 1 MB with two workers, ms", "workers: 2": 1000 * (large - one) / MEGABYTES},
    ]


def _jobs(path: Path, limit: int) -> dict[str, Callable[[str], Any]]:
    """What runs on an executor, by name; results can be compared."""
    samples, labels = images("cifar10_train20k", limit)
    net = prepare(load(path))
    data = open_data(samples, net, preprocessing=CIFAR)
    few = {"images": samples[:64], "labels": labels[:64]}
    config = SearchConfig(ingredients=("clip",), clips=(0.6, 0.8, 1.0))

    def calibration(where: str) -> Any:
        found = observe(net, data, threads=1, executor=where)
        return {name: statistics.to_dict() for name, statistics in found.tensors.items()}

    def distillation(where: str) -> Any:
        found = distill(path, count=128, config=DistillConfig(steps=10, settled=0.0), threads=1, executor=where)
        return {name: array.tobytes() for name, array in found.inputs.items()}

    def sensitivities(where: str) -> Any:
        return measure_sensitivity(path, samples[:64], preprocessing=CIFAR, threads=1, executor=where)

    def search(where: str) -> Any:
        found = qgraph.search(path, few, preprocessing=CIFAR, weights=4, config=config, threads=1, executor=where)
        return found.plan.to_json()

    return {"calibration": calibration, "distillation": distillation, "sensitivity": sensitivities, "search": search}


def _speed_up(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The seconds of every job on one local thread and on clusters, measured in turn."""
    from distributed import LocalCluster

    rows = []
    with ExitStack() as clusters:
        where = {"one local thread": "local"}
        for count in options.workers:
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)
            where[f"workers: {count}"] = f"dask:{clusters.enter_context(cluster).scheduler_address}"
        for job, run in _jobs(shared("models", f"{options.model}.onnx"), options.limit).items():
            seen: dict[str, Any] = {}

            def once(place: str, run: Any = run, seen: dict[str, Any] = seen) -> None:
                seen[place] = run(where[place])

            seconds = in_turn({place: partial(once, place) for place in where}, runs=options.runs)
            if any(found != seen["one local thread"] for found in seen.values()):
                raise SystemExit(f"{job}: the results depend on where they were computed")
            rows.append({"measured": f"{job} of {options.model}, s"} | seconds)
    return rows


if __name__ == "__main__":
    main()
