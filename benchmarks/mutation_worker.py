"""Runs tests on mutants in one process, so that nothing is imported or compiled anew for each.

Reads lines of JSON from the standard input: a path, the source with a fault (empty: the sound one), and the tests to
run. The code of every function of the module is replaced by that of the faulty source, the tests run, and the sound
code is put back. Answers with a line: the first test that fails, or nothing.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

OPTIONS = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:faulthandler")


class FirstFailure:
    """Remembers the first test that fails."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def functions(module: ModuleType) -> Iterator[FunctionType]:
    """The functions and methods that a module defines, inside whatever wraps them."""
    pending: list[Any] = [*vars(module).values()]
    seen: set[int] = set()
    while pending:
        thing = pending.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, FunctionType):
            if thing.__code__.co_filename == module.__file__:
                yield thing
        elif isinstance(thing, type):
            if thing.__module__ == module.__name__:
                pending += vars(thing).values()
            continue
        inside = (getattr(thing, name, None) for name in ("__wrapped__", "__func__", "fget", "fset", "func"))
        pending += [v for v in inside if v is not None and not isinstance(thing, ModuleType)]


def codes(code: CodeType) -> dict[str, CodeType]:
    """The code of all functions of a compiled module, by qualified name; inner ones are part of the outer."""
    found: dict[str, CodeType] = {}
    for inner in (c for c in code.co_consts if isinstance(c, CodeType)):
        is_function = inner.co_flags & 0x02  # has locals of its own, unlike the body of a class
        found |= {inner.co_qualname: inner} if is_function else codes(inner)
    return found


@contextlib.contextmanager
def replaced(path: str, source: str) -> Iterator[None]:
    """The module with the code of another source."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    new = codes(compile(source or Path(path).read_text(encoding="utf-8"), str(module.__file__), "exec"))
    kept = [(function, function.__code__) for function in functions(module)]
    for function, code in kept:
        other = new.get(code.co_qualname)
        if other is not None and other.co_freevars == code.co_freevars:
            function.__code__ = other
    try:
        yield
    finally:
        for function, code in kept:
            function.__code__ = code


def forget() -> None:
    """Clear what functions remember."""
    for thing in gc.get_objects():
        if isinstance(thing, functools._lru_cache_wrapper):
            thing.cache_clear()


def first_failure(path: str, source: str, tests: list[str]) -> str:
    """The first of these tests that fails on the source; "?" where pytest itself stops."""
    forget()
    watch = FirstFailure()
    with replaced(path, source), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = pytest.main([*OPTIONS, *tests], plugins=[watch])
    forget()
    return watch.name or ("?" if status not in (0, 5) else "")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what tests print must not be taken for an answer
    for line in sys.stdin:
        print(json.dumps(first_failure(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
