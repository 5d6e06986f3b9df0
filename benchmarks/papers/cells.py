"""Measured figures, kept one by one: what is in the file is not measured again, so that a stopped run continues."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from qgraph.running.files import write_atomically

RESULTS = Path(__file__).resolve().parents[1] / "results"
KEPT = RESULTS / "papers"
Figures = dict[str, Any]


@dataclass(kw_only=True)
class Cells:
    """The kept figures of one paper; with `quick`, nothing is measured and what is missing stays None."""

    path: Path
    quick: bool = False
    known: dict[str, Figures] = field(default_factory=dict)

    @classmethod
    def of(cls, paper: str, *, quick: bool, folder: Path = KEPT) -> Cells:
        path = folder / f"{paper}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return cls(path=path, quick=quick, known=known)

    def __call__(self, key: str, measure: Callable[[], Figures], *, possible: bool = True) -> Figures | None:
        """The figures under a key, measured unless they are kept; what is not `possible` here stays None."""
        if key not in self.known and possible and not self.quick:
            print(f"measuring {key}", file=sys.stderr, flush=True)
            self.known[key] = measure()
            write_atomically(self.path, (json.dumps(self.known, indent=1, sort_keys=True) + "\n").encode())
        return self.known.get(key)


def percent(found: Figures | None) -> str:
    """An accuracy in percent with the half width of its 95 % interval, or a dash."""
    if found is None:
        return "-"
    share, count = found["top1"] / 100, found["images"]
    half = 196 * math.sqrt(max(share * (1 - share), 1 / count) / count)
    return f"{found['top1']:.1f} ± {half:.1f}"


def over_seeds(found: list[Figures | None], name: str = "top1") -> str:
    """The mean over seeds, half the distance from least to largest, and how many there are."""
    values = [float(one[name]) for one in found if one is not None]
    if not values:
        return "-"
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} ({len(values)} seed{'s' * (len(values) > 1)})"


def kept(name: str) -> list[Figures]:
    """The rows of a file of benchmarks/results; none if it is not there."""
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []
