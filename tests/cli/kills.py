"""Long jobs of the command line, killed at some moment and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONG_JOBS = {
    "quantize": ("quantize", "--weights", "mixed", "--average-bits", "4", "--limit", "64"),
    "search": ("search", "--weights", "3", "--activations", "4", "--ingredients", "bias,clip", "--limit", "48"),
    "finetune": ("finetune", "--weights", "3", "--epochs", "3", "--batch", "32", "--limit", "160"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What a kill did: the moment (seconds after the first checkpoint) and whether the job still ran then."""

    moment: float
    hit: bool
    same: bool
    """Whether the job, resumed, wrote the bytes of one that was left alone, and the kill left no other output."""


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """The command line in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "qgraph", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class LongJob:
    """One of `LONG_JOBS` on a model and its data, run once undisturbed to know its bytes, and its time from the first
    checkpoint on.
    """

    def __init__(self, name: str, model: Path, data: Path, folder: Path) -> None:
        verb, *options = LONG_JOBS[name]
        self.folder = folder
        self.command = (verb, model, "--data", data, *options, "--threads", "1", "--quiet")
        whole, checkpoints = folder / "whole", folder / "undisturbed"
        job = self._start(whole, checkpoints)
        wait_for(lambda: checkpoints.exists() and any(checkpoints.iterdir()), job)
        began = time.monotonic()
        if job.wait():
            raise RuntimeError(f"{name} failed undisturbed")
        self.seconds = time.monotonic() - began
        self.expected = whole.read_bytes()

    def kill(self, label: object, moments: Iterable[float]) -> list[Kill]:
        """Kill the job that many seconds after its first checkpoint, again and again, and resume it to its end."""
        out, checkpoints = self.folder / f"{label}.out", self.folder / f"{label}.checkpoints"
        kills = []
        for moment in moments:
            job = self._start(out, checkpoints)
            wait_for(lambda: checkpoints.exists() and any(checkpoints.iterdir()), job)
            time.sleep(moment)
            job.kill()
            hit = job.wait() == -signal.SIGKILL
            whole = not out.exists() or out.read_bytes() == self.expected
            kills.append(Kill(moment=moment, hit=hit, same=whole))
        finished = self._start(out, checkpoints).wait() == 0 and out.read_bytes() == self.expected
        return [Kill(moment=kill.moment, hit=kill.hit, same=kill.same and finished) for kill in kills]

    def _start(self, out: Path, checkpoints: Path) -> subprocess.Popen[bytes]:
        return start(*self.command, "-o", out, "--resume", checkpoints)


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[bytes], seconds: float = 600) -> None:
    """Wait until the condition holds, which it must before the job ends."""
    deadline = time.monotonic() + seconds
    while not condition() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if not condition():
        raise RuntimeError(f"the job (status {job.poll()}) did not come so far")
