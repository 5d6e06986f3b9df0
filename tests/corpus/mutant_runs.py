"""Many mutants in worker processes, which are started again where one took its process down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("mutant_worker.py")
TIMERS = (-signal.SIGPROF, -signal.SIGALRM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of one mutant: `quantized`, `refused`, or words for what must not happen."""

    seed: int
    outcome: str
    kind: str
    seconds: float = 0.0
    growth: int = 0
    """Bytes by which the worker's largest memory grew."""


def fates(first: int, last: int) -> Iterator[Fate]:
    """The fate of every mutant from `first` to before `last`."""
    kind = "unknown"
    while first < last:
        worker = subprocess.Popen(
            [sys.executable, str(WORKER), str(first), str(last)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert worker.stdout is not None
        with worker.stdout:
            for line in worker.stdout:
                row = json.loads(line)
                kind = row["kind"]
                if "outcome" in row:
                    first = row["seed"] + 1
                    yield Fate(**row)
        status = worker.wait()
        if first < last:
            yield Fate(seed=first, kind=kind, outcome="hung" if status in TIMERS else f"crashed with status {status}")
            first += 1
