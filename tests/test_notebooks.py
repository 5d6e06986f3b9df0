"""Every notebook runs from top to bottom, and is committed as what it then shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MAX_BYTES = 400_000

for extra in ("nbclient", "nbformat", "ipykernel", "ipywidgets", "matplotlib"):
    pytest.importorskip(extra, reason='needs the extra: pip install ".[notebooks]"')
sys.path.insert(0, str(NOTEBOOKS))

import nbformat  # noqa: E402
import render  # noqa: E402

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path) -> None:
    notebook = render.executed(path)
    committed = nbformat.read(path, as_version=4)
    assert pictures(render.stripped(notebook)) == pictures(committed) > 0


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_reads_as_a_page(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size < MAX_BYTES
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.splitlines()[0].startswith("# ")
    assert first.source.splitlines()[0].endswith("?")
    assert any("interact(" in cell.source for cell in notebook.cells)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert all(output.output_type != "error" for output in outputs)


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_they_are_all_here() -> None:
    assert [path.stem for path in PATHS] == [
        "bit_allocation",
        "clipping",
        "learned_offset",
        "outliers",
        "pareto",
        "rounding",
        "rounding_search",
        "whatif",
    ]
