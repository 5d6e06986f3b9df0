"""A pytest plugin that writes down which lines of some folders each test runs, and how long the test takes.

    TOUCHED=lines.json TOUCHED_FOLDERS=qgraph/plan:qgraph/lowering pytest -p benchmarks.touched tests/qgraph/plan

Lines that the preparation of a test runs count for every test of its file, as fixtures are shared. Lines that run at
import count for none. The file holds, for each test, its seconds and its lines by path.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

_FOLDERS = tuple(str(Path(folder).resolve()) + os.sep for folder in os.environ["TOUCHED_FOLDERS"].split(":"))
_ROOT = str(Path.cwd()) + os.sep
_lines: set[tuple[str, int]] = set()
_watched: dict[CodeType, bool] = {}
_prepared: dict[str, set[tuple[str, int]]] = defaultdict(set)
_tests: dict[str, tuple[float, set[tuple[str, int]]]] = {}


def _enter(frame: FrameType, event: str, argument: Any) -> Any:
    code = frame.f_code
    if code not in _watched:
        _watched[code] = code.co_filename.startswith(_FOLDERS)
    return _line if _watched[code] else None


def _line(frame: FrameType, event: str, argument: Any) -> Any:
    if event == "line":
        _lines.add((frame.f_code.co_filename, frame.f_lineno))
    return _line


def pytest_collection_finish() -> None:
    threading.settrace(_enter)
    sys.settrace(_enter)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    _lines.clear()
    yield
    _prepared[item.nodeid.partition("::")[0]] |= _lines
    _lines.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    start = time.perf_counter()
    yield
    _tests[item.nodeid] = time.perf_counter() - start, set(_lines)


def pytest_sessionfinish() -> None:
    sys.settrace(None)
    found = {}
    for name, (seconds, lines) in _tests.items():
        by_path: dict[str, list[int]] = defaultdict(list)
        for path, line in sorted(lines | _prepared[name.partition("::")[0]]):
            by_path[path.removeprefix(_ROOT)].append(line)
        found[name] = {"seconds": round(seconds, 3), "lines": by_path}
    Path(os.environ["TOUCHED"]).write_text(json.dumps(found), encoding="utf-8")
