"""What a layer reads: the histogram of its operand on a logarithmic scale, with the range that its grid spans."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.plan.plan import ActivationQuant
from qgraph.report.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, Frame, tick_text
from qgraph.report.html import Markup, element

BINS, HEIGHT = 96, 190


@dataclass(frozen=True, eq=False, kw_only=True)
class Operand:
    """The values of the tensor that a layer reads, in equal bins from `low` to `high`, and its grid's ends.

    `lost` is the share of values that lie outside of the grid.
    """

    layer: str
    tensor: str
    bits: int
    low: float
    high: float
    counts: NDArray[np.int64]
    grid_low: float
    grid_high: float
    lost: float


def operand_of(layer: str, grid: ActivationQuant, seen: qmath.Statistics) -> Operand | None:
    """The histogram of a tensor beside its grid; None where none was taken, or all values are the same."""
    histogram = seen.histogram
    if histogram is None or not histogram.total or not seen.min < seen.max:
        return None
    counts, centers = np.asarray(histogram.counts), np.asarray(histogram.centers)
    held = np.flatnonzero(counts)
    first, last = int(held[0]), int(held[-1]) + 1
    width = math.ceil((last - first) / BINS)
    last = first + width * math.ceil((last - first) / width)
    padded = np.pad(counts[first:last], (0, max(0, last - len(counts))))
    outside = (centers < grid.low - histogram.width / 2) | (centers > grid.high + histogram.width / 2)
    low = float(centers[first] - histogram.width / 2)
    return Operand(
        layer=layer,
        tensor=grid.tensor,
        bits=grid.bits,
        low=low,
        high=low + (last - first) * float(histogram.width),
        counts=padded.reshape(-1, width).sum(axis=1),
        grid_low=grid.low,
        grid_high=grid.high,
        lost=float(counts[outside].sum() / histogram.total),
    )


def range_chart(found: Operand) -> Markup:
    """The histogram, with what the grid does not span in grey."""
    ends = (found.low, found.high, found.grid_low, found.grid_high)
    x = Axis.over("value", ends)
    y = Axis(label="values in a bin", low=0.5, high=2.0 * float(found.counts.max()), log=True)
    frame = Frame(x=x, y=y, height=HEIGHT)
    title = (
        f"Values that {found.layer} reads, from {found.low:.3g} to {found.high:.3g}; its grid spans {spanned(found)}"
    )
    return element(
        "svg",
        element("title", title),
        frame.axes(),
        element("path", d=_outline(found, frame), class_="fill faded"),
        [_end(found.grid_low, frame, "end"), _end(found.grid_high, frame, "start")],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart c0",
    )


def spanned(found: Operand) -> str:
    """The range of the grid in words."""
    return f"{found.grid_low:.3g} to {found.grid_high:.3g} in {found.bits} bits"


def _outline(found: Operand, frame: Frame) -> str:
    edges = np.linspace(found.low, found.high, len(found.counts) + 1).tolist()
    floor = frame.at(found.low, frame.y.low)[1]
    steps = [f"M{frame.at(edges[0], frame.y.low)[0]} {floor}"]
    for left, right, count in zip(edges[:-1], edges[1:], found.counts.tolist(), strict=True):
        top = frame.at(left, max(count, frame.y.low))[1]
        steps.append(f"L{frame.at(left, 1)[0]} {top}L{frame.at(right, 1)[0]} {top}")
    return "".join(steps) + f"L{frame.at(edges[-1], frame.y.low)[0]} {floor}Z"


def _end(value: float, frame: Frame, outside: str) -> Markup:
    """A line at one end of the grid, the part of the chart beyond it in grey, and the number."""
    x, bottom = frame.at(value, frame.y.low)[0], HEIGHT - BOTTOM
    left, right = (LEFT, x) if outside == "end" else (x, WIDTH - RIGHT)
    inner = "start" if outside == "end" else "end"
    return element(
        "g",
        element("rect", x=left, y=TOP, width=round(max(right - left, 0), 1), height=bottom - TOP, class_="beyond"),
        element("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="end"),
        element("text", tick_text(value), x=x + (4 if inner == "start" else -4), y=TOP + 9, text_anchor=inner),
    )
