"""Every notebook runs from top to bottom, on its own network and on another, and is committed as what it then shows."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
MAX_BYTES = 400_000
NAMES = [
    "bit_allocation",
    "clipping",
    "ingredients",
    "layer_by_layer",
    "learned_offset",
    "outliers",
    "pareto",
    "rounding",
    "rounding_search",
    "second_order",
    "whatif",
]

for extra in ("nbclient", "nbformat", "ipykernel", "ipywidgets", "matplotlib"):
    pytest.importorskip(extra, reason='needs the extra: pip install ".[notebooks]"')
sys.path.insert(0, str(NOTEBOOKS))

import ipywidgets  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import nbformat  # noqa: E402
import render  # noqa: E402

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
FIGURES = {
    "ACIQ": ("1", "2", "3", "4", "A.1", "A.2"),
    "ZeroQ": ("1", "2", "3", "4"),
    "Q-Rater": ("3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "20", "21"),
    "LSQ+": ("1", "2"),
}
QUICK = {"LIMIT": 16, "EPOCHS": 1}  # instead of what the first cell says
SLIDERS: list[tuple[Callable[..., Any], Mapping[str, Any]]] = []
PICTURES: list[bytes] = []


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Notebooks run in this process: sliders are kept instead of shown, pictures drawn as a page draws them."""
    SLIDERS.clear()
    PICTURES.clear()
    monkeypatch.chdir(NOTEBOOKS)
    monkeypatch.setattr(ipywidgets, "interact", lambda callback, **sliders: SLIDERS.append((callback, sliders)))
    monkeypatch.setattr(plt, "show", draw)
    with plt.rc_context():
        plt.switch_backend("agg")
        plt.close("all")  # what other tests left open
        yield
    plt.close("all")


def draw() -> None:
    for number in plt.get_fignums():
        png = io.BytesIO()
        plt.figure(number).savefig(png, format="png", bbox_inches="tight")
        PICTURES.append(png.getvalue())
    plt.close("all")


def run(path: Path, **given: Any) -> str:
    """Run all cells, with `given` in place of what the first one sets; return what they print."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
            draw()
            if number == 0:
                assert set(given) <= set(names), "the first cell says what the notebook is about"
                names.update(given)
    return printed.getvalue()


def first_names(path: Path) -> set[str]:
    """What the first cell of code sets."""
    cell = json.loads(path.read_text(encoding="utf-8"))["cells"][1]
    return set(re.findall(r"^([A-Z]+) = ", "".join(cell["source"]), re.M))


def small_network(folder: Path) -> dict[str, Any]:
    """A network of another shape, trained on nothing, with samples for it: what a reader may bring."""
    rng = np.random.default_rng(0)
    weights = {
        "first.w": (rng.normal(size=(8, 3, 3, 3)) / 5, (8,)),
        "second.w": (rng.standard_t(3, size=(12, 8, 1, 1)) / 5, (12,)),
    }
    arrays = {"head.w": rng.normal(size=(5, 12)), "head.b": np.zeros(5)}
    nodes, value = [], "pixels"
    for name, (weight, (channels,)) in weights.items():
        stem = name.removesuffix(".w")
        arrays[name] = weight
        for part, values in (("scale", 1.0), ("shift", 0.1), ("mean", 0.0), ("var", 1.0)):
            arrays[f"{stem}.{part}"] = np.full(channels, values)
        parts = [f"{stem}.{part}" for part in ("scale", "shift", "mean", "var")]
        nodes.append(helper.make_node("Conv", [value, name], [f"{stem}.y"], name=f"{stem}/conv"))
        nodes.append(helper.make_node("BatchNormalization", [f"{stem}.y", *parts], [f"{stem}.n"]))
        nodes.append(helper.make_node("Relu", [f"{stem}.n"], [f"{stem}.r"]))
        value = f"{stem}.r"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "head.w", "head.b"], ["scores"], name="head", transB=1))
    tensor = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pixels", tensor, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("scores", tensor, ["N", 5])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "small.onnx"
    )
    for name in ("train", "test"):
        np.savez(folder / f"{name}.npz", pixels=rng.normal(size=(24, 3, 6, 6)).astype(np.float32))
    return {"MODEL": folder / "small.onnx", "DATA": folder / "train.npz", "TEST": folder / "test.npz"}


def ends(slider: Any) -> tuple[Any, Any]:
    """The first and the last value of a slider."""
    if isinstance(slider, ipywidgets.Checkbox):
        return False, True
    if hasattr(slider, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in slider.options]
        return values[0], values[-1]
    return (
        (slider.min, slider.max) if not hasattr(slider, "base") else (slider.base**slider.min, slider.base**slider.max)
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom_and_so_do_its_sliders(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed = nbformat.read(path, as_version=4)
    run(path, **{name: value for name, value in QUICK.items() if name in first_names(path)})
    assert len(PICTURES) == pictures(committed) > 0
    assert SLIDERS
    for callback, sliders in SLIDERS:
        start = {name: slider.value for name, slider in sliders.items()}
        for choice in ({name: ends(slider)[side] for name, slider in sliders.items()} for side in (0, -1)):
            seen = len(PICTURES)
            callback(**start | choice)
            draw()
            assert len(PICTURES) == seen + 1, "a slider draws one picture"


@pytest.mark.filterwarnings("ignore::UserWarning")  # a network without training has little to distil or to learn
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_on_a_network_of_the_readers(path: Path, tmp_path: Path) -> None:
    asked = first_names(path)
    given = small_network(tmp_path) | QUICK
    printed = run(path, **{name: value for name, value in given.items() if name in asked})
    assert "MODEL" in asked
    assert "stem/conv" not in printed
    assert len(PICTURES) == pictures(nbformat.read(path, as_version=4))


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


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_sentence_stands_under_every_picture(path: Path) -> None:
    """Printed by the cell that draws, or in the text below it."""
    cells = nbformat.read(path, as_version=4).cells
    for cell, below in zip(cells, [*cells[1:], nbformat.v4.new_markdown_cell("")], strict=True):
        outputs = cell.get("outputs", [])
        if any("image/png" in output.get("data", {}) for output in outputs):
            said = [output.text for output in outputs if output.output_type == "stream"]
            under = said[-1] if said else below.source if below.cell_type == "markdown" else ""
            assert re.match(r"[^#].*\.$", under.strip().split("\n\n")[0], re.S), cell.source


@pytest.mark.parametrize("paper", FIGURES)
def test_the_page_of_the_papers_says_where_each_figure_is(paper: str) -> None:
    """And the notebook there names it."""
    page = (NOTEBOOKS.parent / "docs" / "papers.md").read_text(encoding="utf-8")
    section = next(part for part in page.split("\n## ") if part.startswith(paper))
    rows = re.findall(r"^\| (Figures?[^|]*)\|([^|]*)\|", section, re.M)
    places = {figure: place for words, place in rows for figure in figures(words)}
    for figure in FIGURES[paper]:
        found = re.search(r"notebooks/(\w+)\.ipynb", places[figure])
        assert found, f"Figure {figure}: {places[figure]}"
        cells = json.loads((NOTEBOOKS / f"{found[1]}.ipynb").read_text(encoding="utf-8"))["cells"]
        assert figure in figures("\n".join("".join(cell["source"]) for cell in cells)), f"Figure {figure} in {found[1]}"


def figures(text: str) -> set[str]:
    """The figures that a text names, as in `Figure A.1` or `Figures 6 to 8, 11 (second order) and 13`."""
    one = r"(?:A\.)?\d+"
    plain = re.sub(r"\s\([^)]*\)", "", text)
    phrases = re.findall(rf"Figures? ({one}(?:(?:,| and| to|, and) {one})*)", plain)
    spans = [span.split(" to ") for phrase in phrases for span in re.split(r",? and |, ", phrase)]
    ranges = [map(str, range(int(span[0]), int(span[1]) + 1)) if len(span) > 1 else span for span in spans]
    return {figure for span in ranges for figure in span}


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_a_kernel_runs_them_too(tmp_path: Path) -> None:
    """What `notebooks/render.py` does, on the shortest of cells."""
    cells = [nbformat.v4.new_markdown_cell("# ?"), nbformat.v4.new_code_cell("import style; print(style.INK)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "short.ipynb")
    notebook = render.stripped(render.executed(tmp_path / "short.ipynb"))
    assert notebook.cells[1].outputs[0].text == "#222222\n"


def test_they_are_all_here() -> None:
    assert [path.stem for path in PATHS] == NAMES
