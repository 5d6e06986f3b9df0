"""Mutation testing: how many generated faults in plans, lowering and methods the tests of these rooms notice.

    python -m benchmarks.mutation --sample 100 --seed 0
    python -m benchmarks.mutation --survivors

Every mutant differs from the source in one comparison, arithmetic operator, constant, condition or statement;
annotations, decorators and messages are left alone. A mutant is killed when a test file of its room fails, or takes
many times longer than on the original source. Every result is kept at once in `benchmarks/results/mutation.json`, so
that an interrupted job can continue, and `--survivors` tries those again that no test noticed.

cosmic-ray would mutate each arithmetic operator in eleven ways, annotations too, but no statements; mutmut forks the
process after everything is loaded, and onnxruntime's threads do not survive a fork.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.common import report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
COPIED = ("qgraph", "qmath", "tests", "benchmarks/__init__.py", "benchmarks/common.py", "pyproject.toml")
ROOMS = {
    "qgraph/plan": ["tests/qgraph/plan", "tests/qgraph/lowering"],
    "qgraph/lowering": ["tests/qgraph/lowering"],
    "qgraph/methods/aciq": ["tests/qgraph/methods/aciq"],
    "qgraph/methods/zeroq": ["tests/qgraph/methods/zeroq"],
    "qgraph/methods/qrater": ["tests/qgraph/methods/qrater"],
    "qgraph/methods/lsqplus": ["tests/qgraph/methods/lsqplus"],
}
SHARED_TESTS = ["tests/test_messages.py"]  # for every room
GRACE, SLACK = 60.0, 5.0  # a mutant may take this many seconds plus so many times as long as the original source

COMPARISONS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "exc", "cause"}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mutant:
    """One fault: the `index`-th possible change of a file, and what it changes."""

    path: str
    line: int
    index: int
    kind: str
    was: str
    becomes: str

    @property
    def key(self) -> str:
        return f"{self.path}|{self.kind}|{self.was}|{self.becomes}|{self.index}"


@dataclass(slots=True)
class Change:
    """How to make one mutant of a tree: `make` changes the node in place."""

    node: ast.AST
    kind: str
    make: Callable[[ast.AST], None]


def changes(tree: ast.Module) -> Iterator[Change]:
    """All possible changes, in the order of the source."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield from _of_node(node)
        inner: list[ast.AST] = []
        for name, value in ast.iter_fields(node):
            if name in SKIPPED_FIELDS or isinstance(node, ast.JoinedStr):
                continue
            inner += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)]
        pending += reversed(inner)


def _of_node(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        yield Change(node, "comparison", lambda n: n.ops.__setitem__(0, COMPARISONS[type(n.ops[0])]()))
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield Change(node, "arithmetic", lambda n: setattr(n, "op", ARITHMETIC[type(n.op)]()))
    elif isinstance(node, ast.BoolOp):
        yield Change(node, "boolean", lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        kind = "boolean" if isinstance(node.op, ast.Not) else "arithmetic"
        yield Change(node, kind, lambda n: setattr(n, "op", ast.UAdd() if kind == "arithmetic" else _Twice()))
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        changed = not node.value if isinstance(node.value, bool) else node.value + 1
        yield Change(node, "constant", lambda n: setattr(n, "value", changed))
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield Change(node, "condition", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test)))
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if call or isinstance(node, ast.Raise | ast.Continue | ast.Break | ast.AugAssign):
        yield Change(node, "statement", _remove)


class _Twice(ast.Not):
    """Marks a `not` that is removed; it is written as two."""


def _remove(statement: ast.AST) -> None:
    statement.__class__ = ast.Pass
    statement.__dict__.clear()


def mutants(path: str) -> list[Mutant]:
    """All mutants of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = []
    for index, change in enumerate(changes(tree)):
        twin = copy.deepcopy(change.node)
        change.make(twin)
        was, becomes = _head(change.node), _head(twin)
        line = getattr(change.node, "lineno", 0)
        found.append(Mutant(path=path, line=line, index=index, kind=change.kind, was=was, becomes=becomes))
    return found


def _head(node: ast.AST) -> str:
    text = "not not" if isinstance(getattr(node, "op", None), _Twice) else ""
    if text and isinstance(node, ast.UnaryOp):
        return ast.unparse(node.operand)
    return ast.unparse(node).split("\n")[0]


def mutated(mutant: Mutant) -> str:
    """The source of the mutant's file with the fault."""
    tree = ast.parse((ROOT / mutant.path).read_text(encoding="utf-8"))
    change = next(c for index, c in enumerate(changes(tree)) if index == mutant.index)
    change.make(change.node)
    return ast.unparse(_WithoutTwice().visit(tree)) + "\n"


class _WithoutTwice(ast.NodeTransformer):
    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return node.operand if isinstance(node.op, _Twice) else node


def population() -> list[Mutant]:
    """All mutants of all rooms."""
    files = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
    return [mutant for path in files for mutant in mutants(path.relative_to(ROOT).as_posix())]


@dataclass(slots=True)
class Bench:
    """A copy of the checkout in which files are replaced and tests run."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def made(cls, folder: Path) -> Bench:
        for name in COPIED:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)  # with compiled kernels, which stay valid as file times are kept
            else:
                shutil.copy(source, target)
        return cls(folder)

    def outcome(self, mutant: Mutant) -> str:
        """`killed`, `survived` or `timeout`."""
        room = next(r for r in ROOMS if mutant.path.startswith(f"{r}/"))
        if room not in self.seconds:
            start = time.monotonic()
            if self._fails(room, "", timeout=3600.0):
                sys.exit(f"the tests of {room} fail on the sound source")
            self.seconds[room] = time.monotonic() - start
        target = self.folder / mutant.path
        sound = target.read_bytes()
        for stale in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
            stale.unlink()
        target.write_text(mutated(mutant), encoding="utf-8")
        try:
            fails = self._fails(room, mutant.path, timeout=GRACE + SLACK * self.seconds[room])
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            target.write_bytes(sound)
        return "killed" if fails else "survived"

    def _fails(self, room: str, path: str, *, timeout: float) -> bool:
        """Whether a test of the room fails; tests that import the file at `path` run first."""
        folders = [*ROOMS[room], *SHARED_TESTS]
        files = [p for f in folders for p in sorted((self.folder / f).rglob("test_*.py"))]
        files += [self.folder / f for f in folders if f.endswith(".py")]
        module = path.removesuffix(".py").replace("/", ".")
        files.sort(key=lambda p: module not in p.read_text(encoding="utf-8"))
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1" if path else ""}
        command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", "-p", "no:randomly"]
        done = subprocess.run(
            [*command, *dict.fromkeys(map(str, files))],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            timeout=timeout,
        )
        if done.returncode not in (0, 1, 2):
            sys.exit(f"pytest ended with {done.returncode}:\n{done.stdout.decode()[-2000:]}")
        return done.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=100, help="mutants to try (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of mutants (default: 0)")
    parser.add_argument("--room", action="append", help="only mutants of this folder, such as qgraph/plan (repeatable)")
    parser.add_argument("--survivors", action="store_true", help="try the mutants again that survived")
    parser.add_argument("--minutes", type=float, help="stop after this time; run again to continue")
    options = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["mutants"] if RESULTS.exists() else []
    known = {row["key"]: row for row in kept}
    everything = population()
    chosen = random.Random(options.seed).sample(everything, min(options.sample, len(everything)))
    if options.survivors:
        alive = {key for key, row in known.items() if row["outcome"] == "survived"}
        chosen = [mutant for mutant in everything if mutant.key in alive]
    rooms = tuple(options.room or ROOMS)
    missing = [m for m in chosen if m.path.startswith(rooms) and (options.survivors or m.key not in known)]
    deadline = time.monotonic() + 60 * (options.minutes or 1e9)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        bench = Bench.made(Path(folder))
        for mutant in missing:
            if time.monotonic() > deadline:
                break
            outcome = bench.outcome(mutant)
            print(f"{outcome:9} {mutant.path}:{mutant.line} {mutant.was[:60]} -> {mutant.becomes[:60]}", flush=True)
            known[mutant.key] = {"key": mutant.key, **asdict(mutant), "outcome": outcome}
            _keep(known, len(everything))
    _show(list(known.values()))


def _keep(known: dict[str, dict[str, object]], everything: int) -> None:
    content = {
        "of": everything,
        "tried": len(known),
        "mutants": sorted(known.values(), key=lambda row: str(row["key"])),
    }
    partial = RESULTS.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(RESULTS)


def _show(rows: list[dict[str, object]]) -> None:
    counts: dict[str, Counter[str]] = {room: Counter() for room in ROOMS}
    for row in rows:
        room = next(r for r in ROOMS if str(row["path"]).startswith(f"{r}/"))
        counts[room][str(row["outcome"])] += 1
    counts["all"] = sum(counts.values(), Counter())
    survivors = [row for row in rows if row["outcome"] == "survived"]
    for row in sorted(survivors, key=lambda row: (str(row["path"]), int(str(row["line"])))):
        print(f"{row['path']}:{row['line']}: {row['was']}  ->  {row['becomes']}")
    tried = {room: sum(found.values()) for room, found in counts.items()}
    report(
        "Mutants killed by the tests of their room",
        [
            {
                "room": room,
                "tried": tried[room],
                "survived": found["survived"],
                "killed, %": 100 * (1 - found["survived"] / max(tried[room], 1)),
            }
            for room, found in counts.items()
        ],
    )


if __name__ == "__main__":
    main()
