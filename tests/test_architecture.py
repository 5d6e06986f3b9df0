"""The rules of the house, read from the source: imports point down, one module per engine, small files."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "qgraph" / "demo_assets"  # beside the data that they made, not part of the package
FILES = sorted(p for top in ("qmath", "qgraph") for p in (ROOT / top).rglob("*.py") if SCRIPTS not in p.parents)
RUNTIMES = {"qgraph/running/sessions.py", "qgraph/gradient/training.py"}
FLOORS = ["errors", "version", "running", "onnxfile", "graph", "samples", "plan", "observe", "lowering", "gradient"]
FLOORS += ["methods", "assess", "jobs", "report", "cli", "__main__"]
FLAT = 14  # modules that may lie in qgraph/ itself


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path):
    name, found = name_of(path), imports(path)
    tops = {module.split(".")[0] for module in found}
    if name.startswith("qmath/"):
        assert not tops & {"onnx", "onnx_ir", "onnxruntime", "qgraph"}
    if name not in RUNTIMES:
        assert "onnxruntime" not in tops
    if name != "qgraph/methods/qrater/bayes.py":
        assert "bayes_opt" not in tops
    if name != "qgraph/running/executor.py":
        assert not tops & {"dask", "distributed"}
    if not name.startswith("qgraph/cli/"):
        assert not tops & {"click", "rich"}
        assert not any(module.startswith("qgraph.cli") for module in found) or name == "qgraph/__main__.py"


def test_one_module_goes_up_to_draw_and_those_of_public_names_and_methods_down():
    """Whoever imports by a name in a string is on this list, so that the rules for imports hold for all others."""
    by_name = {name_of(p) for p in FILES if re.search(r"\bimport_module\(", p.read_text(encoding="utf-8"))}
    allowed = {"qmath/__init__.py", "qmath/late.py", "qgraph/__init__.py", "qgraph/gradient/training.py"}
    allowed |= {
        "qgraph/plan/registry.py",
        "qgraph/plan/settings.py",
        "qgraph/running/views.py",
        "qgraph/assess/metric.py",
    }
    assert {name for name in by_name if not name.startswith("qgraph/cli/")} <= allowed
    drawn = {m for p in FILES for m in re.findall(r'drawn_by\("(\w+)"\)', p.read_text(encoding="utf-8"))}
    assert drawn == {"cells", "frames", "plots"}


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "qgraph")], ids=name_of)
def test_rooms_import_from_the_floors_below(path):
    mine = place(path.relative_to(ROOT).with_suffix("").parts)
    if mine[0] == "__init__":
        return
    for module in imports(path):
        if module.startswith("qgraph."):
            theirs = place(module.split("."))
            assert FLOORS.index(theirs[0]) <= FLOORS.index(mine[0]), f"{name_of(path)} imports {module}"
            if theirs[0] == "methods" and mine[0] == "methods":
                assert theirs[1:2] in ([], mine[1:2]), f"{name_of(path)} imports another method: {module}"


def place(parts: Sequence[str]) -> list[str]:
    """The room of a module, and of a method its folder."""
    return list(parts[1:3]) if parts[1] == "methods" else [parts[1]]


def test_no_import_comes_back_to_its_file():
    modules = {name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in FILES}
    needs = {name: {m for m in imports(path) if m in modules} - {name} for name, path in modules.items()}
    packages = {name for name, path in modules.items() if path.stem == "__init__"}
    needs = {name: found - packages for name, found in needs.items() if name not in packages}
    assert tuple(TopologicalSorter(needs).static_order())


def test_generators_of_test_modules_start_anew_in_every_test():
    """The fixture `same_numbers` sees to those that are called RNG."""
    generator = re.compile(r"(np\.)?random\.(default_rng|Random|RandomState|Generator)\([^()]*\)")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and generator.fullmatch(ast.unparse(node.value)):
                assert ast.unparse(node.targets[0]) == "RNG", f"{name_of(path)}:{node.lineno}"


def test_test_files_have_names_of_their_own():
    """Tests are no packages: pytest refuses to collect two files of one name, whichever folders they are in."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_few_modules_lie_flat():
    assert len(list((ROOT / "qgraph").glob("*.py"))) <= FLAT


def test_the_map_for_contributors_is_the_folders():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^  (\w+)/ ", text.split("\nqgraph/\n")[1].split("```")[0], flags=re.M)
    rooms = {p.name for p in (ROOT / "qgraph").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert set(drawn) == rooms
    assert [room for room in FLOORS if room in rooms] == drawn, "in the order of the floors"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_do_not_print(path):
    if name_of(path).startswith("qgraph/cli/"):
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_small(path):
    source = path.read_text(encoding="utf-8")
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    documented = [n.body[0] for n in nodes if ast.get_docstring(n) is not None]
    prose = sum((d.end_lineno or 0) - d.lineno + 1 for d in documented)
    assert len(source.splitlines()) - prose <= 360, "lines besides docstrings"


def test_no_module_takes_the_name_of_a_function():
    """Once it is imported, `qgraph.NAME` would be the module."""
    import qgraph

    modules = {p.stem for p in (ROOT / "qgraph").iterdir()}
    assert not modules & set(qgraph.__all__)


def test_public_names_have_docstrings():
    import qgraph
    import qmath

    for module in (qmath, qgraph):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) or inspect.isfunction(value):
                assert value.__doc__, f"{module.__name__}.{name} has no docstring"
