"""Mutants of model files: how many are quantized, refused, or bring the tool down.

`python -m benchmarks.faults [--count 20000]`. Every mutant is a random network with its bytes or its meaning damaged
(tests/corpus/mutants.py), quantized in a worker process. Memory is the growth of the largest worker.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import arguments, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "corpus"))
from mutant_runs import Fate, fates

CHUNK = 500


def main() -> None:
    options = arguments(
        __doc__,
        lambda p: p.add_argument("--count", type=int, default=20_000, help="mutants"),
        lambda p: p.add_argument("--first", type=int, default=0, help="seed of the first"),
    )
    starts = range(options.first, options.first + options.count, CHUNK)
    seen: list[Fate] = []
    grown = 0

    def run(first: int) -> list[Fate]:
        return list(fates(first, min(first + CHUNK, options.first + options.count)))

    with ThreadPoolExecutor(options.threads or 2) as pool:
        for part in pool.map(run, starts):
            sizes = [f.rss for f in part if f.rss]
            grown = max(grown, max(sizes) - sizes[0])
            seen += part
            for fate in part:
                if fate.outcome not in ("quantized", "refused"):
                    print(f"seed {fate.seed}: {fate.outcome}", file=sys.stderr, flush=True)
    counts = Counter(f.outcome.split(":")[0].split(" with ")[0] for f in seen)
    rows = [{"outcome": name, "mutants": count} for name, count in counts.most_common()]
    rows += [{"outcome": "slowest, milliseconds", "mutants": round(1000 * max(f.seconds for f in seen))}]
    rows += [{"outcome": "memory growth, MB", "mutants": round(grown / 2**20)}]
    report(f"{len(seen):,} mutants of model files", rows, json_path=options.json)


if __name__ == "__main__":
    main()
