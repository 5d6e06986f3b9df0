"""A cluster on paper: how long a job takes on any number of workers, from measured costs of messages and copies.

`python -m benchmarks.cluster_model [--tasks 20] [--seconds 0.31] [--message-ms 3.5] [--copy-ms 9] [--workers 1 2 ...]`.
Event by event: the scheduler handles one message at a time, half of its time when a task leaves, half when its result
arrives. A worker with nothing to do gets the next task. Shared data pass from worker to worker: twice as many have them
after every copy. What the model leaves out: memory, network bandwidth that workers share, and losses.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence

from benchmarks.common import arguments, report


def simulated(tasks: Sequence[float], workers: int, *, message: float, copy: float) -> float:
    """The seconds until the last result of `tasks`, which take so many seconds each, has arrived."""
    ready = [((k + 1).bit_length() * copy, 0, k) for k in range(workers)]  # when, kind (0 idle, 1 done), worker
    heapq.heapify(ready)
    clock, waiting, end = 0.0, list(reversed(tasks)), 0.0
    while ready:
        when, done, worker = heapq.heappop(ready)
        clock = max(clock, when)
        if done:
            clock += message / 2
            end = clock
        if waiting:
            clock += message / 2
            heapq.heappush(ready, (clock + waiting.pop(), 1, worker))
    return end


def stops(tasks: Sequence[float], workers: int, *, message: float, copy: float) -> str:
    """What keeps a job from being faster on more workers: the largest of the bounds."""
    bounds = {
        "work": sum(tasks) / workers,
        "messages": len(tasks) * message,
        "the longest task": max(tasks, default=0.0),
        "copies": workers.bit_length() * copy,
    }
    return max(bounds, key=lambda name: bounds[name])


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tasks", type=int, default=20, metavar="N", help="independent tasks of the job")
        parser.add_argument("--seconds", type=float, default=0.31, metavar="T", help="what each takes")
        parser.add_argument("--message-ms", type=float, default=3.5, metavar="M", help="a task sent and fetched")
        parser.add_argument("--copy-ms", type=float, default=9.0, metavar="C", help="the shared data, to one worker")
        parser.add_argument("--workers", nargs="*", type=int, default=(1, 2, 5, 20, 100), metavar="W")

    given = arguments(__doc__, add)
    tasks = [given.seconds] * given.tasks
    costs = {"message": given.message_ms / 1e3, "copy": given.copy_ms / 1e3}
    alone = simulated(tasks, 1, **costs)
    rows = []
    for workers in given.workers:
        took = simulated(tasks, workers, **costs)
        rows.append(
            {"workers": workers, "seconds": took, "speed-up": alone / took, "bound by": stops(tasks, workers, **costs)}
        )
    report(f"{given.tasks} tasks of {given.seconds:g} s on a cluster, on paper", rows, json_path=given.json)


if __name__ == "__main__":
    main()
