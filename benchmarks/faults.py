"""What damage does: mutants of model files, by kind and outcome.

`python -m benchmarks.faults [--count 20000]`. Every mutant is a random network with its bytes or its meaning damaged
(tests/corpus/mutants.py), quantized in a worker process that many share and that is replaced where one brings it down.
Anything but quantized, or refused with a reason, is named on stderr, and then the exit status is 1. The first mutant of
a worker pays for what it compiles and imports.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "corpus"))
from mutant_runs import Fate, fates

CHUNK = 500
FINE = ("quantized", "refused")


def main() -> None:
    options = arguments(
        __doc__,
        lambda p: p.add_argument("--count", type=int, default=20_000, help="mutants"),
        lambda p: p.add_argument("--first", type=int, default=0, help="seed of the first"),
    )
    seen = mutants(options.first, options.first + options.count, workers=options.threads or 2)
    report(f"{len(seen):,} mutants of model files", _table(seen), json_path=options.json)
    if any(fate.outcome not in FINE for fate in seen):
        raise SystemExit(1)


def mutants(first: int, last: int, *, workers: int) -> list[Fate]:
    """The fates of the mutants from `first` to before `last`, in chunks, each in a process of its own."""

    def run(start: int) -> list[Fate]:
        return list(fates(start, min(start + CHUNK, last)))

    seen: list[Fate] = []
    with ThreadPoolExecutor(workers) as pool:
        for part in pool.map(run, range(first, last, CHUNK)):
            seen += part
            for fate in part:
                if fate.outcome not in FINE:
                    print(f"seed {fate.seed}, {fate.kind}: {fate.outcome}", file=sys.stderr, flush=True)
            print(f"{len(seen):,} mutants", file=sys.stderr, flush=True)
    return seen


def _table(seen: Sequence[Fate]) -> list[dict[str, Any]]:
    return [_row(kind, [f for f in seen if f.kind == kind]) for kind in sorted({f.kind for f in seen})] + [
        _row("all", seen)
    ]


def _row(kind: str, seen: Sequence[Fate]) -> dict[str, Any]:
    counts = Counter(f.outcome for f in seen)
    return {
        "damage": kind,
        "mutants": len(seen),
        **{name: counts[name] for name in FINE},
        "anything else": sum(n for outcome, n in counts.items() if outcome not in FINE),
        "slowest, ms": round(1000 * max(f.seconds for f in seen)),
        "most memory, MB": round(max(f.growth for f in seen) / 2**20),
    }


if __name__ == "__main__":
    main()
