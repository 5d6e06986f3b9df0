"""Measure the latency of a quantized file relative to the float model: CPU time of one thread, taking turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.running.sessions import Session

SECONDS, RUNS = 1.0, 30
SURE = 8  # pairs that are enough if all are on the same side of `CLOSE`
CLOSE = (0.99, 1.08)  # ratios close to the threshold of a decision are measured for `LONGER` times as long
LONGER = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """The median `ratio` of the file's time to the float model's over pairs of runs, and the time of the float model.

    Both are None if a run fails.
    """

    ratio: float | None
    float_seconds: float | None


def latency(before: Session, after: Session, feeds: Mapping[str, NDArray[Any]]) -> Latency:
    """The latency of `after` relative to `before` on one sample, from 30 pairs or as many as fit into a second.

    Ratios close to 1 get three times as many; 8 are enough if all of them are far
    from 1. The order alternates, because the second finds the sample in the cache.
    """
    ratios: list[float] = []
    floats: list[float] = []
    order, more = [before, after], 1
    started = time.perf_counter()
    try:
        while len(ratios) < more * RUNS and (not ratios or time.perf_counter() - started < more * SECONDS):
            order.reverse()
            took = {id(session): _seconds(session, feeds) for session in order}
            ratios.append(took[id(after)] / max(took[id(before)], 1e-9))
            floats.append(took[id(before)])
            if len(ratios) >= SURE and (max(ratios) < CLOSE[0] or min(ratios) > CLOSE[1]):
                break
            more = LONGER if CLOSE[0] < median(ratios) < CLOSE[1] else 1
    except ModelError:
        return Latency(None, None)
    return Latency(median(ratios), median(floats))


def _seconds(session: Session, feeds: Mapping[str, NDArray[Any]]) -> float:
    start = time.thread_time()
    session.run_list(feeds)
    return time.thread_time() - start
