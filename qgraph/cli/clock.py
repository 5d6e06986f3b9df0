"""The seconds that a command has taken, from the start of its process, so that imports count as well."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

_began = time.perf_counter()


def begin(*, process: bool) -> None:
    """Count from the start of this process, or from now."""
    global _began
    _began = time.perf_counter() - (_age() if process else 0.0)


def elapsed() -> float:
    """Seconds since then."""
    return round(time.perf_counter() - _began, 2)


def with_total(seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds of a job's stages, with those of the whole command as their total."""
    return {**seconds, "total": elapsed()}


def _age() -> float:
    """Seconds since the system started this process; on systems without /proc, since this module was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(uptime - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.perf_counter() - _began
