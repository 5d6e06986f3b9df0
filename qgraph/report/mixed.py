"""Sections on mixed precision: frontiers with the chosen point, and the sensitivity of every layer and tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qgraph.methods.zeroq.allocate import MEGABYTE, Allocation, average_bits
from qgraph.report.charts import Axis, Point, Series, chart
from qgraph.report.html import Content, Markup, element
from qgraph.report.parts import Section, details, figure, number, table

if TYPE_CHECKING:
    from qgraph.report.contents import Report

DRAWN, LISTED = 200, 12  # points of a frontier in its chart and in its table


def frontier(report: Report) -> Section | None:
    """Charts of sizes and sums of sensitivities, with the chosen selection: of weights, activations, or both."""
    if report.allocation is None:
        return None
    return "Frontier", [content for allocation in report.allocation.parts for content in _frontier_of(allocation)]


def _frontier_of(allocation: Allocation) -> list[Content]:
    sizes, costs = np.append(allocation.frontier.sizes, allocation.chosen.size), _costs(allocation)
    positive = sorted(c for c in costs.tolist() if c > 0)
    floor = positive[0] if positive else 1.0
    points = [
        Point(x=size / MEGABYTE, y=max(cost, floor), title=f"{size / MEGABYTE:.4f} MB: {cost:.3g}")
        for size, cost in zip(sizes.tolist(), costs.tolist(), strict=True)
    ]
    shown = _spread(len(points) - 1, DRAWN)
    chosen = Point(x=points[-1].x, y=points[-1].y, title=f"chosen: {points[-1].x:.4f} MB")
    series = [
        Series(name="best at every size", points=tuple(points[i] for i in shown), line=True, marks=False),
        Series(name="chosen", points=(chosen,), colour=1, emphasis=True),
    ]
    each, all_of_them = _described(allocation)
    x = Axis.over(f"{all_of_them}, MB (2^20 bytes)", [p.x for p in points])
    y = Axis.over("sum of sensitivities", [p.y for p in points], log=True)
    drawn = chart(f"Least sum of sensitivities at every size of the {all_of_them}", series, x, y)
    text = (
        f"Every {each} takes one of its bit-widths; the line is the least sum of sensitivities at each size, "
        f"{len(allocation.frontier):,} selections in all. {average_bits(allocation.taken):.2f} bits on average are "
        f"chosen."
    )
    return [
        element("p", text),
        figure("Down and to the left is better", drawn, series),
        _listed(allocation),
    ]


def _described(allocation: Allocation) -> tuple[str, str]:
    """What takes bits, and what all of it together is called."""
    names = {"layer": "weights" if allocation.sensitivity.layers else ""}
    names["tensor that layers read"] = "activations of a sample" if allocation.sensitivity.tensors else ""
    there = {each: every for each, every in names.items() if every}
    return " or ".join(there), " and ".join(there.values())


def sensitivities(report: Report) -> Section | None:
    """Heat maps of sensitivities per layer or tensor and bits, with the chosen bits framed."""
    if report.allocation is None:
        return None
    compared = ", ".join(f"{kind} of {name}" for name, kind in report.allocation.sensitivity.outputs)
    text = f"How far the outputs move ({compared}) when one of them alone is quantized; a stronger colour is farther."
    heats = [_heat(allocation) for allocation in report.allocation.parts]
    return "Sensitivity", [element("p", text), *heats, _closed_form(report.allocation)]


def _heat(allocation: Allocation) -> Markup:
    """The sensitivities on a logarithmic scale of colours."""
    widths = sorted({k for row, _ in allocation.taken for k in row.bits})
    values = [v for row, _ in allocation.taken for v in row.measured if v > 0]
    low, high = min(values, default=1.0), max(values, default=1.0)
    rows = []
    for row, taken in allocation.taken:
        omega = dict(zip(row.bits, row.measured, strict=True))
        cells = _row(row.name, [omega.get(k) for k in widths], widths.index(taken), (low, high))
        rows.append(element("tr", cells))
    each, _ = _described(allocation)
    head = [
        element("th", each, scope="col"),
        *(element("th", f"{k} bits", scope="col", class_="number") for k in widths),
    ]
    caption = f"Sensitivity of the outputs to each {each} alone; the chosen bits are framed and marked *"
    heat = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", head)),
        element("tbody", rows),
        class_="heat",
    )
    return element("div", heat, class_="scroll", role="region", tabindex=0, aria_label=caption)


def _row(name: str, omega: Sequence[float | None], chosen: int, span: tuple[float, float]) -> Content:
    cells = [element("th", name, scope="row")]
    for index, value in enumerate(omega):
        if value is None:
            cells.append(element("td", "-", class_="number"))
            continue
        text = f"{value:.1e}".replace("e-0", "e-") + (" *" if index == chosen else "")
        kind = "number chosen" if index == chosen else "number"
        cells.append(element("td", text, class_=kind, style=f"--t:{_share(value, *span):.0f}%"))
    return cells


def _share(value: float, low: float, high: float) -> float:
    """The position of a value between low and high on a logarithmic scale, in percent."""
    if value <= 0 or high <= low:
        return 0.0
    return 100 * min(1.0, max(0.0, math.log(value / low) / math.log(high / low)))


def _closed_form(allocation: Allocation) -> Markup | None:
    """A chart of measured sensitivities over those in closed form, if there are any."""
    points = [
        Point(x=p, y=m, title=f"{layer.name}, {k} bits: predicted {p:.2g}, measured {m:.2g}")
        for layer in allocation.sensitivity.layers
        for k, p, m in zip(layer.bits, layer.predicted, layer.measured, strict=False)
        if p > 0 and m > 0
    ]
    if not points:
        return None
    series = [Series(name="layers and bits", points=tuple(points), colour=2)]
    x = Axis.over("predicted by the closed form", [p.x for p in points], log=True)
    y = Axis.over("measured", [p.y for p in points], log=True)
    return figure(
        "Sensitivity: predicted against measured", chart("Predicted and measured sensitivity", series, x, y), series
    )


def _listed(allocation: Allocation) -> Markup:
    count = sum(row.count for row in allocation.sensitivity.rows)
    costs = _costs(allocation)
    sizes = np.append(allocation.frontier.sizes, allocation.chosen.size)
    order = [*_spread(len(sizes) - 1, LISTED), len(sizes) - 1]
    rows = [
        (
            f"{sizes[i] / MEGABYTE:.4f}" + (" (chosen)" if i == len(sizes) - 1 else ""),
            number(8 * float(sizes[i]) / max(count, 1), 2),
            f"{costs[i]:.3g}",
        )
        for i in sorted(order, key=lambda i: float(sizes[i]))
    ]
    listed = table("Some selections on the frontier", ("MB", "bits on average", "sum of sensitivities"), rows)
    return details("Numbers", listed, unfolded=False)


def _costs(allocation: Allocation) -> np.ndarray:
    return np.append(allocation.frontier.costs, allocation.chosen.cost)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spread, including the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})
