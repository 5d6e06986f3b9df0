"""The effects of damage: mutants of model files by kind and outcome, and long jobs that are killed.

`python -m benchmarks.faults [mutants] [--count 20000]`: every mutant is a random network with damaged bytes or damaged
meaning (tests/corpus/mutants.py). Many mutants share a worker process, which is replaced when one brings it down. A
mutant that is neither quantized nor refused with a reason is named on stderr, and the exit status is then 1. The first
mutant of a worker includes the time to compile and import.

`python -m benchmarks.faults kills [--count 18]`: quantize with mixed bits, search and finetune the demo network. Each
job is killed (SIGKILL) at random moments, two per run, and resumed, until that many kills hit it while it ran. All must
write the same as an undisturbed job.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "corpus"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cli"))
from kills import LONG_JOBS, LongJob
from mutant_runs import Fate, fates

DEMO = Path(str(files("qgraph") / "demo_assets"))

CHUNK = 500
FINE = ("quantized", "refused")


def main() -> None:
    options = arguments(
        __doc__,
        lambda p: p.add_argument("part", nargs="?", default="mutants", choices=("mutants", "kills")),
        lambda p: p.add_argument("--count", type=int, help="mutants, or kills of each job"),
        lambda p: p.add_argument("--first", type=int, default=0, help="seed of the first mutant"),
    )
    if options.part == "kills":
        rows = [kills(name, options.count or 18) for name in LONG_JOBS]
        report("Jobs killed and resumed", rows, json_path=options.json)
        raise SystemExit(any(row["other bytes"] for row in rows))
    seen = mutants(options.first, options.first + (options.count or 20_000), workers=options.threads or 2)
    report(f"{len(seen):,} mutants of model files", _table(seen), json_path=options.json)
    raise SystemExit(any(fate.outcome not in FINE for fate in seen))


def kills(name: str, count: int) -> dict[str, Any]:
    """The outcome of a long job that is killed until `count` kills have hit it."""
    with tempfile.TemporaryDirectory() as folder:
        job = LongJob(name, DEMO / "digits.onnx", DEMO / "digits_calibration.npz", Path(folder))
        rng, seen = np.random.default_rng(0), []
        while sum(kill.hit for kill in seen) < count:
            first, second = np.sort(rng.uniform(0, job.seconds, 2)).tolist()
            seen += job.kill(len(seen), (first, second - first))
            hit, same = sum(kill.hit for kill in seen), sum(kill.same for kill in seen)
            print(
                f"{name}: {hit} of {count} kills, {same} of {len(seen)} with the same bytes",
                file=sys.stderr,
                flush=True,
            )
    return {
        "job": name,
        "seconds after the first checkpoint": job.seconds,
        "kills": len(seen),
        "while it ran": hit,
        "same bytes": same,
        "other bytes": len(seen) - same,
    }


def mutants(first: int, last: int, *, workers: int) -> list[Fate]:
    """The fates of the mutants from `first` to before `last`, in chunks with a process each."""

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
