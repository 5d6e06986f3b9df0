"""Mutation testing: how many generated faults in plans, lowering and methods the tests of these rooms notice.

    python -m benchmarks.mutation --sample 100 --seed 0
    python -m benchmarks.mutation --survivors

A mutant (`benchmarks.mutants`) is killed when a test that runs its line fails, or takes many times longer than on the
original source. Which tests these are is measured first, by one run of all tests of the rooms and of the jobs; for each
mutant the cheapest files run first, for at most 30 seconds of tests, in a process that has everything loaded already
(`benchmarks.mutation_worker`). Every result is kept at once in `benchmarks/results/mutation.json`, so that an
interrupted job can continue; `--survivors` tries those again that no test noticed, and `--touched FILE` keeps the
measured lines for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.common import report
from benchmarks.mutants import ROOT, Mutant, mutated, population

RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
COPIED = ("qgraph", "qmath", "tests", "benchmarks", "docs", "pyproject.toml", "CHANGELOG.md", "README.md")
ROOMS = ("qgraph/plan", "qgraph/lowering", "qgraph/methods")
TESTS = ("tests/test_messages.py", *(f"tests/{room}" for room in (*ROOMS, "qgraph/jobs")))
MOST = 30.0  # seconds of tests for one mutant
GRACE, SLACK = 240.0, 10.0  # a mutant may take this many seconds plus so many times as long as the original source
PYTEST = (sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", "-p", "no:randomly")


class Worker:
    """The process of `benchmarks.mutation_worker`, which is started when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def ask(self, question: list[Any], timeout: float) -> str:
        """The first test that fails; raises `TimeoutError`."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.mutation_worker"],
                cwd=self.folder,
                env=_environment(self.folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        into, out = self.process.stdin, self.process.stdout
        assert into is not None
        assert out is not None
        into.write(json.dumps(question) + "\n")
        into.flush()
        if not select.select([out], [], [], timeout)[0]:
            raise TimeoutError
        answer = out.readline()
        if not answer:
            self.close()
            return "?"  # the process itself died of the mutant
        return str(json.loads(answer))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(slots=True)
class Bench:
    """A copy of the checkout in which files are replaced and tests run; `touched` says what the tests of a file run."""

    folder: Path
    touched: dict[str, Any]
    worker: Worker

    @classmethod
    def made(cls, folder: Path, kept: Path | None) -> Bench:
        for name in COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target)  # with compiled kernels, which stay valid as file times are kept
            elif source.exists():
                shutil.copy(source, target)
        known = json.loads(kept.read_text(encoding="utf-8")) if kept is not None and kept.exists() else {}
        bench = cls(folder, {}, Worker(folder))
        bench._learn(known)
        if kept is not None:
            kept.write_text(json.dumps(bench.touched), encoding="utf-8")
        return bench

    def _learn(self, known: dict[str, Any]) -> None:
        """Measure what the tests of every file run, unless `known` has it for the file and the sources it runs."""
        digests = {p.relative_to(self.folder).as_posix(): _digest(p) for p in self.folder.rglob("*.py")}
        for place in TESTS:
            for name in (p.relative_to(self.folder).as_posix() for p in _test_files(self.folder / place)):
                found = known.get(name)
                if found is None or any(digests.get(path) != digest for path, digest in found["digests"].items()):
                    print(f"measuring {name}", flush=True)
                    tests = self._lines_of(name)
                    paths = {name, *(path for ran in tests.values() for path in ran["lines"])}
                    found = {"digests": {path: digests[path] for path in sorted(paths)}, "tests": tests}
                self.touched[name] = found

    def _lines_of(self, name: str) -> dict[str, Any]:
        lines = self.folder / "touched.json"
        settings = {"TOUCHED": str(lines), "TOUCHED_FOLDERS": os.pathsep.join(ROOMS)}
        done = self._pytest([*PYTEST, "-p", "benchmarks.touched", name], **settings)
        if done.returncode not in (0, 5):
            sys.exit(f"{name} fails on the sound source:\n{done.stdout.decode()[-2000:]}")
        tests: dict[str, Any] = json.loads(lines.read_text(encoding="utf-8"))
        return tests

    def outcome(self, mutant: Mutant) -> str:
        """`killed`, `survived` or `timeout`."""
        chosen, seconds = self._tests_of(mutant)
        if not chosen:
            return "survived"
        timeout = GRACE + SLACK * seconds
        try:
            if mutant.at_import:
                return "killed" if self._fails_anew(mutant, chosen, timeout) else "survived"
            return "killed" if self._fails(mutant, chosen, timeout) else "survived"
        except TimeoutError:
            self.worker.close()
            return "timeout"

    def _fails(self, mutant: Mutant, chosen: list[str], timeout: float) -> bool:
        """Whether a test fails in the process that has everything loaded already, and not on the sound source."""
        for _ in range(2):
            failed = self.worker.ask([mutant.path, mutated(mutant), chosen], timeout)
            if not failed:
                return False
            if failed != "?" and not self.worker.ask([mutant.path, "", [failed]], timeout):
                return True
            self.worker.close()  # an earlier mutant has left something behind
        return bool(failed)

    def _fails_anew(self, mutant: Mutant, chosen: list[str], timeout: float) -> bool:
        """The same in a process of its own."""
        target = self.folder / mutant.path
        sound = target.read_bytes()
        target.write_text(mutated(mutant), encoding="utf-8")
        try:
            return self._pytest([*PYTEST, *chosen], timeout=timeout).returncode != 0
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            target.write_bytes(sound)

    def _tests_of(self, mutant: Mutant) -> tuple[list[str], float]:
        """The tests that run the mutant, file by file, and the seconds that they take."""
        first, last = mutant.reach
        reaching: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for file, found in self.touched.items():
            for test, ran in found["tests"].items():
                if any(first <= line <= last for line in ran["lines"].get(mutant.path, ())):
                    reaching[file].append((ran["seconds"], test))
        chosen: list[str] = []
        total = 0.0
        for tests in sorted(reaching.values(), key=lambda tests: sum(seconds for seconds, _ in tests)):
            for seconds, test in sorted(tests):
                if total + seconds <= MOST:
                    total += seconds
                    chosen.append(test)
        return chosen, total

    def _pytest(
        self, command: list[str], timeout: float | None = None, **settings: str
    ) -> subprocess.CompletedProcess[bytes]:
        environment = _environment(self.folder) | settings
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, timeout=timeout)


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def _test_files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.rglob("test_*.py"))


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=100, help="mutants to try (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of mutants (default: 0)")
    parser.add_argument("--room", action="append", help="only mutants of this folder, such as qgraph/plan (repeatable)")
    parser.add_argument("--survivors", action="store_true", help="try the mutants again that survived")
    parser.add_argument("--minutes", type=float, help="stop after this time; run again to continue")
    parser.add_argument("--touched", type=Path, help="a file that keeps which lines each test runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where outcomes are kept")
    options = parser.parse_args()
    kept = json.loads(options.results.read_text(encoding="utf-8"))["mutants"] if options.results.exists() else []
    known = {row["key"]: row for row in kept}
    everything = population(ROOMS)
    chosen = random.Random(options.seed).sample(everything, min(options.sample, len(everything)))
    if options.survivors:
        alive = {key for key, row in known.items() if row["outcome"] == "survived"}
        chosen = [mutant for mutant in everything if mutant.key in alive]
    rooms = tuple(options.room or ROOMS)
    missing = [m for m in chosen if m.path.startswith(rooms) and (options.survivors or m.key not in known)]
    deadline = time.monotonic() + 60 * (options.minutes or 1e9)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        bench = Bench.made(Path(folder), options.touched)
        for mutant in missing:
            if time.monotonic() > deadline:
                break
            outcome = bench.outcome(mutant)
            print(f"{outcome:9} {mutant.path}:{mutant.line} {mutant.was[:60]} -> {mutant.becomes[:60]}", flush=True)
            known[mutant.key] = {"key": mutant.key, **asdict(mutant), "outcome": outcome}
            _keep(known, len(everything), options.results)
        bench.worker.close()
    _show(list(known.values()))


def _keep(known: dict[str, dict[str, object]], everything: int, results: Path) -> None:
    content = {
        "of": everything,
        "tried": len(known),
        "rows": _scores(known.values()),
        "mutants": sorted(known.values(), key=lambda row: str(row["key"])),
    }
    partial = results.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(results)


def _scores(mutants: Iterable[dict[str, object]]) -> list[dict[str, object]]:
    """The share of mutants killed in each room, and in all."""
    counts: dict[str, Counter[str]] = {room: Counter() for room in ROOMS}
    for row in mutants:
        room = next(r for r in ROOMS if str(row["path"]).startswith(f"{r}/"))
        counts[room][str(row["outcome"])] += 1
    counts["all"] = sum(counts.values(), Counter())
    scores: list[dict[str, object]] = []
    for room, found in counts.items():
        tried, survived = sum(found.values()), found["survived"]
        killed = 100 * (1 - survived / max(tried, 1))
        scores.append({"room": room, "tried": tried, "survived": survived, "killed, %": killed})
    return scores


def _show(mutants: list[dict[str, object]]) -> None:
    survivors = [row for row in mutants if row["outcome"] == "survived"]
    for row in sorted(survivors, key=lambda row: (str(row["path"]), int(str(row["line"])))):
        print(f"{row['path']}:{row['line']}: {row['was']}  ->  {row['becomes']}")
    report("Mutants killed by the tests of the rooms", _scores(mutants))


if __name__ == "__main__":
    main()
