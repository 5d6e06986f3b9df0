"""The costs and gains of a Dask cluster: sensitivity on 1, 2 and 5 workers, and the time of one message.

`python -m benchmarks.cluster [--limit 64] [--runs 3] [--workers 1 2 5]`. Scheduler and workers are processes on this
machine (loopback), one thread each. A message is an empty task that is submitted and run, and whose result is fetched.
Results must equal those of threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.common import CIFAR, arguments, images, in_turn, report, shared, timed
from qgraph.jobs.sensitivity import measure_sensitivity
from qgraph.running.executor import open_executor

TASKS = 500
MEGABYTES = 16


def nothing(shared: bytes, task: int) -> int:
    return task


def main() -> None:
    options = arguments(
        __doc__,
        lambda p: p.add_argument("--model", default="cifar10_resnet20", help="one of the shared models"),
        lambda p: p.add_argument("--limit", type=int, default=64, help="samples"),
        lambda p: p.add_argument("--runs", type=int, default=3, help="runs of each, after a warm-up run"),
        lambda p: p.add_argument("--workers", nargs="*", type=int, default=(1, 2, 5), metavar="N", help="of a cluster"),
    )
    rows = [*_messages(), *_speed_up(options)]
    report("Sensitivity on a Dask cluster over loopback", rows, json_path=options.json)


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
        {"measured": f"one empty task of {TASKS}, ms", "figure": 1000 * small},
        {"measured": "one empty task alone, ms", "figure": 1000 * one},
        {"measured": "sharing 1 MB with two workers, ms", "figure": 1000 * (large - one) / MEGABYTES},
    ]


def _speed_up(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The seconds of a sensitivity job on one local thread and on clusters, measured in turn."""
    from distributed import LocalCluster

    path = shared("models", f"{options.model}.onnx")
    samples, _ = images("cifar10_train20k", options.limit)
    seen: dict[str, list[Any]] = {}

    def job(name: str, executor: str) -> Callable[[], None]:
        def run() -> None:
            found = measure_sensitivity(path, samples, preprocessing=CIFAR, threads=1, executor=executor)
            seen.setdefault(name, []).append(found)

        return run

    with ExitStack() as clusters:
        jobs = {"one local thread": job("one local thread", "local")}
        for count in options.workers:
            name = f"workers: {count}"
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)
            jobs[name] = job(name, f"dask:{clusters.enter_context(cluster).scheduler_address}")
        seconds = in_turn(jobs, runs=options.runs)
    if any(found != seen["one local thread"][0] for several in seen.values() for found in several):
        raise SystemExit("the results depend on where they were computed")
    return [
        *({"measured": f"sensitivity of {options.model}, {name}, s", "figure": seconds[name]} for name in jobs),
        *(
            {"measured": f"speed-up, {name}", "figure": seconds["one local thread"] / seconds[name]}
            for name in jobs
            if name != "one local thread"
        ),
    ]


if __name__ == "__main__":
    main()
