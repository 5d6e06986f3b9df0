"""Damaged and hostile files: refused with a reason, or quantized; nothing else (20,000 more in benchmarks.faults)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutant_runs import fates

COUNT = 200
MEMORY = 300 * 2**20


def test_mutants_are_quantized_or_refused(monkeypatch):
    root = Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    halves = [(0, COUNT // 2), (COUNT // 2, COUNT)]
    with ThreadPoolExecutor(2) as pool:
        seen = [fate for part in pool.map(lambda ends: list(fates(*ends)), halves) for fate in part]
    assert [f for f in seen if f.outcome not in ("quantized", "refused")] == []
    assert len(seen) == COUNT
    assert sum(f.outcome == "quantized" for f in seen) > 10
    assert max(f.seconds for f in seen) < 10
    assert sum(f.growth for f in seen[: COUNT // 2]) < MEMORY
    assert sum(f.growth for f in seen[COUNT // 2 :]) < MEMORY
