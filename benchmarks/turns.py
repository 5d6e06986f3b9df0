"""Let engines that cannot share a process take turns: each is a process that answers one word per line.

PyTorch and onnxruntime-training are in environments of their own, given by their interpreters. Every engine does a
little work at each request, so that all see the same machine.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

_PAUSE = 0.3  # seconds to wait after an answer until the threads of its engine stop spinning


class Worker:
    """A process `python -m module arguments` that answers requests."""

    def __init__(self, python: str, module: str, arguments: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read()

    def ask(self, word: str) -> str:
        """The answer to one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        answer = self._read()
        time.sleep(_PAUSE)
        return answer

    def close(self) -> float:
        """End the process and return by how many MB its memory grew at most while it served."""
        peak = float(self.ask("stop"))
        self._process.wait()
        return peak

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} failed: run it by itself to see why")
        return line.strip()


def serve(answers: Mapping[str, Callable[[str], object]]) -> None:
    """Answer requests, a first word and the rest of a line, until "stop"."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("ready", flush=True)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "stop":
            break
        print(answers[word](rest), flush=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, flush=True)


def best(job: Callable[[], object], *, seconds: float) -> float:
    """The seconds of the fastest call within `seconds`, long enough for a woken thread to find a core of its own."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        job()
        times.append(time.perf_counter() - began)
    return min(times)
