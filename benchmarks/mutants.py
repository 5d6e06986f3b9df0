"""Mutants: copies of a source file with one small fault each.

Every mutant differs from the source in one comparison, arithmetic operator, constant, condition or statement;
annotations, decorators, messages and constants that change no result (a number of threads) are left alone.

cosmic-ray would mutate each arithmetic operator in eleven ways, annotations too, but no statements; mutmut forks the
process after everything is loaded, and onnxruntime's threads do not survive a fork.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
NO_RESULT = {"strict", "threads", "stacklevel"}  # constants that are passed as these change nothing that is computed
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "exc", "cause"}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mutant:
    """One fault: the `index`-th possible change of a file, and what it changes.

    `reach` are the first and last line of what runs it, from 1: an expression; or, where it already takes effect
    `at_import`, the function whose default it is, or the whole file.
    """

    path: str
    line: int
    index: int
    kind: str
    was: str
    becomes: str
    reach: tuple[int, int]
    at_import: bool

    @property
    def key(self) -> str:
        return f"{self.path}|{self.kind}|{self.was}|{self.becomes}|{self.index}"


@dataclass(slots=True)
class Change:
    """How to make one mutant of a tree: `make` changes the node in place."""

    node: ast.AST
    kind: str
    make: Callable[[ast.AST], None]
    reach: tuple[int, int] = (0, 0)
    at_import: bool = False


def changes(tree: ast.Module) -> Iterator[Change]:
    """All possible changes, in the order of the source."""
    pending: list[tuple[ast.AST, tuple[int, int] | None]] = [(tree, (1, 10**9))]
    while pending:
        node, reach = pending.pop()
        for change in _of_node(node):
            change.reach, change.at_import = reach or _lines(node), reach is not None
            yield change
        inner: list[tuple[ast.AST, tuple[int, int] | None]] = []
        for name, value in ast.iter_fields(node):
            if name in SKIPPED_FIELDS or isinstance(node, ast.JoinedStr):
                continue
            if isinstance(node, ast.keyword) and node.arg in NO_RESULT and isinstance(value, ast.Constant):
                continue
            below = reach
            if isinstance(node, ast.FunctionDef):
                below = None if name == "body" else _lines(node)
            inner += [(v, below) for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)]
        pending += reversed(inner)


def _lines(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)


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
        fault = {"kind": change.kind, "was": was, "becomes": becomes}
        where = {"reach": change.reach, "at_import": change.at_import}
        found.append(Mutant(path=path, line=line, index=index, **fault, **where))
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


def population(rooms: Iterable[str]) -> list[Mutant]:
    """All mutants of all files in some folders."""
    files = sorted(p for room in rooms for p in (ROOT / room).rglob("*.py"))
    return [mutant for path in files for mutant in mutants(path.relative_to(ROOT).as_posix())]
