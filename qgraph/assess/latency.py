"""How long a quantized file takes beside the float model: processor time of one thread, the two in turn."""

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
CLOSE = (0.99, 1.08)  # ratios about which a decision turns: they are measured for `LONGER` times as long
LONGER = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """`ratio` is the median of the file's time over the float model's, pair by pair; `float_seconds` what float takes.

    Both are None where a run fails.
    """

    ratio: float | None
    float_seconds: float | None


def latency(before: Session, after: Session, feeds: Mapping[str, NDArray[Any]]) -> Latency:
    """The latency of `after` relative to `before` on one sample: from 30 pairs, or as many as a second holds.

    A ratio near to 1 takes three times as much. Who goes first changes with every pair: the second finds the sample in
    the cache.
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
            more = LONGER if CLOSE[0] < median(ratios) < CLOSE[1] else 1
    except ModelError:
        return Latency(None, None)
    return Latency(median(ratios), median(floats))


def _seconds(session: Session, feeds: Mapping[str, NDArray[Any]]) -> float:
    start = time.thread_time()
    session.run_list(feeds)
    return time.thread_time() - start
