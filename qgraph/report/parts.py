"""The parts of a section: figures, tables, foldable parts, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qgraph.report.charts import Series, swatch
from qgraph.report.html import Content, Markup, element

Section = tuple[str, Content]
"""The heading of a section and its content."""


def figure(caption: str, drawn: Markup, series: Sequence[Series], *, always: bool = False) -> Markup:
    """A chart with its caption, and a legend if there is more than one series, or `always`."""
    items = [element("li", swatch(s), element("span", s.name)) for s in series if s.points]
    legend = element("ul", items, class_="legend") if len(items) > (0 if always else 1) else None
    return element("figure", element("figcaption", caption), drawn, legend)


def table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[Content]], *, left: int = 1, stacked: bool = False
) -> Markup:
    """A table whose first column names the row; the first `left` columns are text, the others are numbers.

    `stacked` rows become cards on a narrow screen; roles keep it a table for screen readers.
    """

    def kind(index: int) -> str | None:
        return None if index < left else "number"

    head = [element("th", name, scope="col", role="columnheader", class_=kind(i)) for i, name in enumerate(columns)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", role="rowheader"),
            [
                element("td", cell, class_=kind(i), role="cell", data_label=columns[i])
                for i, cell in enumerate(row[1:], 1)
            ],
            role="row",
        )
        for row in rows
    ]
    inner = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", head, role="row"), role="rowgroup"),
        element("tbody", body, role="rowgroup"),
        role="table",
        class_="stacked" if stacked else None,
    )
    return element("div", inner, class_="scroll", role="region", tabindex=0, aria_label=caption)


def details(title: str, content: Content, *, unfolded: bool) -> Markup:
    """A foldable part."""
    return element("details", element("summary", title), content, open="" if unfolded else None)


def number(value: float | None, digits: int) -> str:
    """The number with fixed digits, or a dash for None."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def versions_text(versions: Mapping[str, str]) -> str:
    """Packages with their versions, in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
