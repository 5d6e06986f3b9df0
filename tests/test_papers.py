"""The tables of the papers: what is kept prints, and what is listed exists."""

from __future__ import annotations

import importlib
import json
import re

import pytest

from benchmarks.papers.__main__ import PAPERS, main
from benchmarks.papers.cells import Cells, over_seeds, percent
from benchmarks.readme import ROOT, protocol

PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_table_prints_what_is_kept(paper, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["papers", "--paper", paper, "--quick"])
    main()
    shown = capsys.readouterr().out
    tables = list(importlib.import_module(f"benchmarks.papers.{paper}").tables(Cells.of(paper, quick=True)))
    for table in tables:
        assert table.number in shown
        assert all(row.keys() == table.rows()[0].keys() for row in table.rows())


@pytest.mark.parametrize("paper", PAPERS)
def test_every_table_is_on_the_page(paper):
    section = PAGE.lower().split("\n## ")[1 + PAPERS.index(paper)]
    for table in importlib.import_module(f"benchmarks.papers.{paper}").tables(Cells.of(paper, quick=True)):
        for number in re.findall(
            r"\b(?:\d+|[ivx]+b?)\b", table.number.lower().partition("(")[0].replace("eq. ", "eq ")
        ):
            assert re.search(rf"\b{number}\b", section), table.number


def test_every_notebook_on_the_page_exists():
    named = set(re.findall(r"/notebooks/(\w+\.ipynb)", PAGE))
    assert len(named) > 4
    assert named <= {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_a_cell_is_measured_once_and_never_when_quick(tmp_path):
    asked = []

    def measure():
        asked.append(1)
        return {"top1": 50.0, "images": 100}

    assert Cells.of("p", quick=True, folder=tmp_path)("a", measure) is None
    first = Cells.of("p", quick=False, folder=tmp_path)
    assert first("a", measure) == first("a", measure) == {"top1": 50.0, "images": 100}
    again = Cells.of("p", quick=True, folder=tmp_path)
    assert again("a", measure) == first("a", measure, possible=False) == {"top1": 50.0, "images": 100}
    assert first("b", measure, possible=False) is None
    assert len(asked) == 1
    assert json.loads((tmp_path / "p.json").read_text()) == {"a": {"images": 100, "top1": 50.0}}


def test_figures_say_how_sure_they_are():
    assert percent({"top1": 50.0, "images": 100}) == "50.0 ± 9.8"
    assert percent(None) == over_seeds([None]) == "-"
    assert over_seeds([{"top1": 90.0}, {"top1": 91.0}, {"top1": 92.0}]) == "91.00 ± 1.00 (3 seeds)"
    assert over_seeds([{"top1": 90.0}]) == "90.00 (1 seed)"


def test_the_tables_of_protocols_come_from_the_registry():
    rows = {row[""]: row for row in protocol("zeroq")}
    assert rows["`--set zeroq.steps`"]["the paper"] == "500"
    assert rows["`--set zeroq.steps`"]["here by default"] == "60"
    assert rows["`--clip`"]["the paper"] == "max"
