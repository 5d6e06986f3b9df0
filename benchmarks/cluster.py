"""What a Dask cluster costs and gains: sensitivity and search on 1 and 2 workers, and the price of one message.

`python -m benchmarks.cluster [--model cifar10_resnet20] [--limit 64]`. Scheduler and workers are processes on this
machine (loopback), one thread each. A message is an empty task: submitted, run, its result fetched. The results are
compared with those of threads and must be the same.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import CIFAR, arguments, images, report, shared, timed
from qgraph.executor import open_executor
from qgraph.pipeline import measure_sensitivity

TASKS = 500
MEGABYTES = 16


def nothing(shared: bytes, task: int) -> int:
    return task


def main() -> None:
    options = arguments(
        __doc__,
        lambda p: p.add_argument("--model", default="cifar10_resnet20", help="one of the shared models"),
        lambda p: p.add_argument("--limit", type=int, default=64, help="samples"),
    )
    rows = [*_messages(), *_speed_up(options)]
    report("Sensitivity on a Dask cluster over loopback", rows, json_path=options.json)


def _messages() -> list[dict[str, Any]]:
    """Milliseconds of an empty task, and of sending what all tasks share, to a cluster of two workers."""
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        open_executor(f"dask:{cluster.scheduler_address}") as executor,
    ):

        def run(shared: bytes, tasks: int) -> float:
            return timed(lambda: list(executor.run(nothing, shared, range(tasks))))

        run(b"", 10)  # connections are open, modules imported
        small = min(run(b"", TASKS) for _ in range(3)) / TASKS
        one = min(run(b"", 1) for _ in range(5))
        large = min(run(b"?" * MEGABYTES * 2**20, 2) for _ in range(3))
    return [
        {"measured": f"one empty task of {TASKS}, ms", "figure": 1000 * small},
        {"measured": "one empty task alone, ms", "figure": 1000 * one},
        {"measured": "sharing 1 MB with two workers, ms", "figure": 1000 * (large - one) / MEGABYTES},
    ]


def _speed_up(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a sensitivity on one and two workers, and on one thread of this process."""
    from distributed import LocalCluster

    path = shared("models", f"{options.model}.onnx")
    samples, _ = images("cifar10_train20k", options.limit)

    def job(executor: str) -> Callable[[], Any]:
        return lambda: measure_sensitivity(path, samples, preprocessing=CIFAR, threads=1, executor=executor)

    seen, seconds = {}, {}
    for workers in (1, 2):
        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
            run = job(f"dask:{cluster.scheduler_address}")
            run()  # imports and compiled kernels are there
            start = time.perf_counter()
            seen[workers] = pickle.dumps(run().layers)
            seconds[workers] = time.perf_counter() - start
    start = time.perf_counter()
    local = pickle.dumps(job("local")().layers)
    alone = time.perf_counter() - start
    if not local == seen[1] == seen[2]:
        raise SystemExit("the results depend on where they were computed")
    return [
        {"measured": f"sensitivity of {options.model}, one local thread, s", "figure": alone},
        {"measured": "the same, one worker, s", "figure": seconds[1]},
        {"measured": "the same, two workers, s", "figure": seconds[2]},
        {"measured": "speed-up of two workers", "figure": seconds[1] / seconds[2]},
    ]


if __name__ == "__main__":
    main()
