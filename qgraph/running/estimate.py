"""How long a job will take on some number of workers, from the first seconds of it.

An `Estimate` is the `Progress` of a job. It lets every stage run until it has taken `seconds`, and ends the job there
by raising `Enough`, unless the rest of that stage is short. On w workers, a stage of T worker-seconds takes

    ceil(p / w) T / p

where p of its pieces run at a time; stages that are not divided take as long as here. Messages are not counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

from qgraph.running.progress import Advance


class Enough(BaseException):
    """Ends a job whose rest has been estimated; like an interrupt, nothing handles it on the way."""


@dataclass(slots=True)
class Stage:
    """A stage of a job: `done` of `total` units in `seconds`, on `threads` threads, of which `pieces` run apart."""

    title: str
    total: int | None
    pieces: int
    threads: int
    done: int = 0
    seconds: float = 0.0

    @property
    def whole(self) -> float:
        """The seconds of all units here; of those that are done where the total is not known."""
        return self.seconds * (1.0 if self.total is None else self.total / max(self.done, 1))

    def on(self, workers: int) -> float:
        """The seconds on so many workers of one thread each.

        Example:
            >>> from qgraph.running.estimate import Stage
            >>> stage = Stage("sensitivity", total=20, pieces=20, threads=2, done=5, seconds=2.0)
            >>> stage.whole, [stage.on(workers) for workers in (1, 5, 100)]
            (8.0, [16.0, 3.2, 0.8])
        """
        if self.pieces <= 1:
            return self.whole
        work = self.whole * min(self.threads, self.pieces)
        return math.ceil(self.pieces / workers) * work / self.pieces


@dataclass(slots=True, kw_only=True)
class Estimate:
    """Watches the stages of a job on `threads` threads; see the module."""

    threads: int
    seconds: float = 20.0
    clock: Callable[[], float] = time.perf_counter
    stages: list[Stage] = field(default_factory=list)
    ended: bool = False
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, pieces: int = 1) -> Iterator[Advance]:
        began, stage = self.clock(), Stage(title, total, pieces, self.threads)
        self.stages.append(stage)

        def advance(units: int, note: str = "") -> None:
            with self._lock:
                stage.done += units
                stage.seconds = self.clock() - began
                rest = stage.whole - stage.seconds
            if stage.seconds >= self.seconds and rest >= self.seconds:
                self.ended = True
                raise Enough

        yield advance
        stage.seconds = self.clock() - began
