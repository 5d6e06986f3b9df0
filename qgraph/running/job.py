"""How a job runs, and how long its stages take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qgraph.running.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings that a caller gives once and every stage reads.

    `seed` of everything drawn at random; `threads` (None: all cores); `resume`: the folder of checkpoints; `executor`:
    `local` or `dask:ADDRESS`. Only the seed changes results.
    """

    seed: int = 0
    threads: int | None = None
    resume: str | Path | None = None
    executor: str = "local"
    progress: Progress = SILENT
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _started: float = field(default_factory=time.perf_counter, init=False, repr=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the seconds of a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)

    def finish(self) -> None:
        """Record the seconds of the whole job so far."""
        self.seconds["total"] = round(time.perf_counter() - self._started, 4)
