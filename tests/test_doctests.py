"""The examples in docstrings and on the pages, run; and that every public name says in a line what it is."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import qgraph
import qgraph.gradient.registry
import qgraph.plan.registry
import qmath
import qmath.empirical_clipping

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {package.__name__: package for package in (qmath, qgraph, qgraph.gradient)}
NAMES = {f"{path}.{name}": getattr(package, name) for path, package in PACKAGES.items() for name in package.__all__}
PUBLIC = {name: value for name, value in NAMES.items() if inspect.isfunction(value) or inspect.isclass(value)}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    f"{page.name}-{number}": block
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))
    if not block.startswith("--8<--")  # recipes that need the exporter
}


@pytest.fixture(autouse=True)
def folder_of_its_own(tmp_path, monkeypatch):
    """What an example writes or registers is gone after it."""
    monkeypatch.chdir(tmp_path)
    qgraph.plan.registry.method_names()  # our own methods register for good, whichever example imports them first
    for registry in (qmath.empirical_clipping, qgraph.plan.registry):
        monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(qgraph.gradient.registry, "_rules", dict(qgraph.gradient.registry._rules))


@pytest.mark.parametrize("name", [*PACKAGES, *PUBLIC])
def test_examples_give_what_they_show(name):
    said: list[str] = []
    finder = doctest.DocTestFinder(recurse=name in PUBLIC)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in finder.find(PUBLIC.get(name, PACKAGES.get(name)), name):
        runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_in_a_line_what_it_is(name):
    summary, *rest = inspect.getdoc(PUBLIC[name]).splitlines()
    assert summary.endswith("."), summary
    assert not rest or not rest[0], "the summary does not fit a line"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    assert "\nExample:\n    >>> " in inspect.getdoc(PUBLIC[name])


@pytest.mark.parametrize("block", BLOCKS)
def test_code_on_the_pages_runs(block, digits, digits_calibration):
    shutil.copy(digits, "model.onnx")
    few = {name: values[:32] for name, values in np.load(digits_calibration).items()}
    for name in ("calibration.npz", "train.npz"):
        np.savez(name, **few)
    onnx.save(with_loss(), "model_with_loss.onnx")
    exec(compile(BLOCKS[block], block, "exec"), {"__name__": "page"})


def with_loss() -> onnx.ModelProto:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[4] input) => (float loss) {\n'
    return onnx.parser.parse_model(text + "square = Mul(input, input)\nloss = ReduceSum<keepdims = 0>(square)\n}")


def documented():
    """Where each docstring of the packages stands, with its lines."""
    for path in (p for top in ("qmath", "qgraph") for p in sorted((ROOT / top).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text.splitlines()


def test_every_summary_fits_a_line():
    found = dict(documented())
    assert len(found) > 1500
    assert [where for where, (summary, *rest) in found.items() if summary[-1] not in ".:" or any(rest[:1])] == []
