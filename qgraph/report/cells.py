"""Results in a notebook: a line, a table of layers, and the whole report as a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qgraph.assess.layer_errors import LayerReport
from qgraph.report.gather import report_of
from qgraph.report.html import Content, Markup, element, escape, join
from qgraph.report.page import render
from qgraph.report.parts import number
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from qgraph.jobs.result import Result
    from qgraph.jobs.whatif import WhatIf

SHOWN = 24  # rows of a table in a notebook
HEIGHT = 720  # of a report in a cell, in pixels


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Page:
    """A report: the page itself as `html`, shown by a notebook as a cell, and written by `save`.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
        >>> page = qgraph.quantize(network, activations=None, measure=False).report()
        >>> page.save("report.html")
    """

    html: str
    title: str

    def save(self, path: str | Path) -> None:
        """Write the page to a file, whole or not at all."""
        write_atomically(Path(path), self.html.encode())

    def __repr__(self) -> str:
        return f"Page({self.title!r}, {len(self.html):,} bytes; .save(path) writes it)"

    def _repr_html_(self) -> str:
        frame = f'<iframe srcdoc="{escape(self.html)}" title="{escape(self.title)}" sandbox="allow-popups"'
        return f'{frame} style="width:100%;height:{HEIGHT}px;border:0"></iframe>'


def page_of(result: Result, name: str) -> Page:
    """The report on a result."""
    return Page(html=render(report_of(result, name=name)), title=f"{result.net.source}: {name}")


def result_cell(said: str, layers: Sequence[LayerReport], lines: Sequence[str]) -> str:
    """A result: its line, its verdict, and its layers."""
    columns = ("layer", "op", "weights", "activations", "runs on", "predicted dB", "measured dB")
    rows = [
        (
            layer.name,
            layer.op,
            layer.weight_bits,
            "-" if layer.activation_bits is None else layer.activation_bits,
            layer.runs,
            number(layer.predicted_sqnr_db, 1),
            number(layer.measured_sqnr_db, 1),
        )
        for layer in layers
    ]
    return join([element("p", element("b", said)), [element("div", line) for line in lines], _table(columns, rows)])


def changes_cell(found: WhatIf) -> str:
    """What changes, before and after."""
    columns = ("layer", "weights", "activations", "predicted dB", "simulated dB")
    rows = []
    for before, after in found.layers:
        bits = [(before.weight_bits, after.weight_bits), (before.activation_bits, after.activation_bits)]
        errors = [(before.predicted_sqnr_db, after.predicted_sqnr_db)]
        errors += [(before.simulated_sqnr_db, after.simulated_sqnr_db)]
        texts = [_pair(*("-" if v is None else str(v) for v in pair)) for pair in bits]
        rows.append((before.name, *texts, *(_pair(*(number(v, 1) for v in pair)) for pair in errors)))
    return join([element("p", element("b", repr(found))), _table(columns, rows)])


def _pair(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Content]]) -> Markup:
    """A plain table, which takes the notebook's own style; rows beyond a screenful are counted."""
    head = element("thead", element("tr", [element("th", name) for name in columns]))
    body = element("tbody", [element("tr", [element("td", cell) for cell in row]) for row in rows[:SHOWN]])
    more = len(rows) - SHOWN
    rest = element("p", f"and {more} more: .to_frame() has them all") if more > 0 else None
    return join([element("table", head, body), rest])
