"""Sections on mixed precision: the frontier with the chosen point, and the sensitivity of every layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qgraph.methods.zeroq.allocate import MEGABYTE, Allocation
from qgraph.report.charts import Axis, Point, Series, chart
from qgraph.report.html import Content, Markup, element
from qgraph.report.parts import Section, details, figure, number, table

if TYPE_CHECKING:
    from qgraph.report.contents import Report

DRAWN, LISTED = 200, 12  # points of a frontier in its chart and in its table


def frontier(report: Report) -> Section | None:
    """A chart of sizes and sums of sensitivities, with the chosen selection."""
    if report.allocation is None:
        return None
    allocation = report.allocation
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
    x = Axis.over("weights, MB (2^20 bytes)", [p.x for p in points])
    y = Axis.over("sum of sensitivities", [p.y for p in points], log=True)
    drawn = chart("Least sum of sensitivities at every size of the weights", series, x, y)
    text = (
        f"Every layer takes one of its bit-widths; the line is the least sum of sensitivities at each size, "
        f"{len(allocation.frontier):,} selections in all."
    )
    return "Frontier", [
        element("p", text),
        figure("Down and to the left is better", drawn, series),
        _listed(allocation),
    ]


def sensitivities(report: Report) -> Section | None:
    """A heat map of sensitivities per layer and bits, on a logarithmic scale, with the chosen bits framed."""
    if report.allocation is None:
        return None
    layers, taken = report.allocation.sensitivity.layers, report.allocation.bits
    widths = sorted({k for layer in layers for k in layer.bits})
    values = [v for layer in layers for v in layer.measured if v > 0]
    low, high = min(values, default=1.0), max(values, default=1.0)
    rows = []
    for layer in layers:
        omega = dict(zip(layer.bits, layer.measured, strict=True))
        rows.append(
            element(
                "tr", _row(layer.name, [omega.get(k) for k in widths], widths.index(taken[layer.name]), (low, high))
            )
        )
    head = [
        element("th", "layer", scope="col"),
        *(element("th", f"{k} bits", scope="col", class_="number") for k in widths),
    ]
    caption = "Sensitivity of the outputs to each layer alone; the chosen bits are framed and marked *"
    heat = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", element("tr", head)),
        element("tbody", rows),
        class_="heat",
    )
    compared = ", ".join(f"{kind} of {name}" for name, kind in report.allocation.sensitivity.outputs)
    text = f"How far the outputs move ({compared}) when one layer alone is quantized; a stronger colour is farther."
    region = element("div", heat, class_="scroll", role="region", tabindex=0, aria_label=caption)
    return "Sensitivity", [element("p", text), region, _closed_form(report.allocation)]


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
    weights = sum(layer.weights for layer in allocation.sensitivity.layers)
    costs = _costs(allocation)
    sizes = np.append(allocation.frontier.sizes, allocation.chosen.size)
    order = [*_spread(len(sizes) - 1, LISTED), len(sizes) - 1]
    rows = [
        (
            f"{sizes[i] / MEGABYTE:.4f}" + (" (chosen)" if i == len(sizes) - 1 else ""),
            number(8 * float(sizes[i]) / max(weights, 1), 2),
            f"{costs[i]:.3g}",
        )
        for i in sorted(order, key=lambda i: float(sizes[i]))
    ]
    listed = table("Some selections on the frontier", ("MB", "bits of an average weight", "sum of sensitivities"), rows)
    return details("Numbers", listed, unfolded=False)


def _costs(allocation: Allocation) -> np.ndarray:
    return np.append(allocation.frontier.costs, allocation.chosen.cost)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spread, including the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})
