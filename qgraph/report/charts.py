"""Charts as inline SVG, 360 units wide so that their text is readable on a phone.

Colours are classes (`c0` to `c5`), which the style sheet defines for light and dark; shapes differ too, so that colour
is never the only difference. Every mark has a title, and the page shows the same numbers in a table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qgraph.report.html import Markup, element

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 40
COLOURS = 6
RADIUS = 3.5  # of a mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One mark, with the text of its tooltip."""

    x: float
    y: float
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour: as marks, marks on a line, or (in charts of layers) bars from zero."""

    name: str
    points: tuple[Point, ...]
    colour: int = 0
    line: bool = False
    bars: bool = False
    marks: bool = True
    emphasis: bool = False
    """Draw larger marks, with their titles beside them."""

    def finite(self) -> list[Point]:
        return [p for p in self.points if math.isfinite(p.x) and math.isfinite(p.y)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear or logarithmic axis over low..high."""

    label: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    @classmethod
    def over(
        cls, label: str, values: Sequence[float], *, log: bool = False, zero: bool = False, most: float = math.inf
    ) -> Axis:
        """An axis that shows all values, with a margin at ends that are not zero or `most`, the largest possible."""
        low, high = (min(values), max(values)) if values else (1.0, 1.0)
        if log:
            return cls(label=label, low=low / 1.2, high=high * 1.2, log=True)
        span = high - low if high - low > 1e-9 * abs(high) else 0.0  # a narrower axis has no ticks within
        margin = 0.04 * span or 0.02 * abs(high) or 1.0
        return cls(label=label, low=0.0 if zero else low - margin, high=max(high, min(high + margin, most)))

    def place(self, value: float) -> float:
        """The position of a value on the axis, from 0 (low) to 1 (high)."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About five round numbers within the axis."""
        if self.log:
            exponents = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            decades = [10.0**e for e in exponents[:: max(1, math.ceil(len(exponents) / 6))]]
            return decades if len(decades) > 1 else [self.low * 1.2, self.high / 1.2]
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, height: int = HEIGHT, diagonal: bool = False
) -> Markup:
    """Draw the series on two axes; `diagonal` adds the line of equal values. Screen readers read the title."""
    frame = Frame(x=x, y=y, height=height)
    frame = dataclasses.replace(frame, moved=frame.apart(series))
    return element(
        "svg",
        element("title", title),
        frame.axes(),
        frame.diagonal() if diagonal else None,
        [frame.draw(s) for s in series],
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        class_="chart",
    )


def swatch(series: Series) -> Markup:
    """The mark of a series, for a legend."""
    shape = bar(2, 2, 12, 12) if series.bars else mark(8, 8, series.colour, 5)
    inner = element("g", shape, class_=f"c{series.colour % COLOURS}")
    return element("svg", inner, viewBox="0 0 16 16", class_="swatch", aria_hidden="true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The rectangle between two axes; `moved` says by how much marks stand beside their place, so that all are seen."""

    x: Axis
    y: Axis
    height: int
    moved: Mapping[tuple[str, Point], float] = field(default_factory=dict)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(self.height - BOTTOM - self.y.place(y) * (self.height - TOP - BOTTOM), 1)

    def apart(self, series: Sequence[Series]) -> dict[tuple[str, Point], float]:
        """How far to move marks of different series sideways that would cover each other."""
        cells: dict[tuple[int, int], list[tuple[str, Point]]] = {}
        for one in series:
            for point in one.finite() if one.marks else ():
                x, y = self.at(point.x, point.y)
                cells.setdefault((round(x / RADIUS), round(y / RADIUS)), []).append((one.name, point))
        moved = {}
        for held in cells.values():
            if len({name for name, _ in held}) > 1:
                across = [self.at(point.x, point.y)[0] for _, point in held]
                width = (2 * RADIUS + 1) * (len(held) - 1) / 2
                middle = min(max(across[0], LEFT + width), WIDTH - RIGHT - width)
                for index, (key, x) in enumerate(zip(held, across, strict=True)):
                    moved[key] = middle - width + (2 * RADIUS + 1) * index - x
        return moved

    def axes(self) -> Iterator[Markup]:
        bottom, middle = self.height - BOTTOM, (self.height - BOTTOM + TOP) / 2
        for tick in self.y.ticks():
            _, at = self.at(self.x.low, tick)
            yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="rule")
            yield element("text", tick_text(tick), x=LEFT - 5, y=at + 4, text_anchor="end")
        for tick in self.x.ticks():
            at, _ = self.at(tick, self.y.low)
            yield element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="tick")
            yield element("text", tick_text(tick), x=at, y=bottom + 16, text_anchor="middle")
        yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="tick")
        label_x = (LEFT + WIDTH - RIGHT) / 2
        yield element("text", self.x.label, x=label_x, y=self.height - 6, text_anchor="middle", class_="label")
        turn = f"translate(11 {middle}) rotate(-90)"
        yield element("text", self.y.label, transform=turn, text_anchor="middle", class_="label")

    def diagonal(self) -> Markup | None:
        low, high = max(self.x.low, self.y.low), min(self.x.high, self.y.high)
        if low >= high:
            return None
        (x1, y1), (x2, y2) = self.at(low, low), self.at(high, high)
        return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="diagonal")

    def draw(self, series: Series) -> Markup:
        points = series.finite()
        parts: list[Markup] = []
        if series.line and len(points) > 1:
            path = "M" + "L".join(f"{x} {y}" for x, y in (self.at(p.x, p.y) for p in points))
            parts.append(element("path", d=path, class_="line"))
        if series.marks:
            size = 7 if series.emphasis else RADIUS
            parts.extend(
                element("g", element("title", p.title), mark(*self._placed(p, series), series.colour, size))
                for p in points
            )
        if series.emphasis:
            parts.extend(self._written(p) for p in points)
        return element("g", parts, class_=f"c{series.colour % COLOURS}")

    def _placed(self, point: Point, series: Series) -> tuple[float, float]:
        x, y = self.at(point.x, point.y)
        return x + self.moved.get((series.name, point), 0.0), y

    def _written(self, point: Point) -> Markup:
        x, y = self.at(point.x, point.y)
        right = x > 0.62 * WIDTH  # too close to the right edge: write to the left of the mark
        across = {"x": x - 11 if right else x + 11, "text_anchor": "end" if right else "start"}
        return element("text", point.title, y=max(y - 8, 12), class_="written", **across)


def bar(x: float, y: float, width: float, height: float) -> Markup:
    """A filled rectangle."""
    return element("rect", x=round(x, 2), y=y, width=round(width, 2), height=round(height, 2), class_="fill")


def mark(x: float, y: float, colour: int, r: float) -> Markup:
    """Circle, square, diamond, triangle, triangle down, plus: one shape per colour."""
    shape = colour % COLOURS
    if shape == 0:
        return element("circle", cx=x, cy=y, r=r, class_="fill")
    s = r * 0.9
    path = {
        1: f"M{x - s} {y - s}h{2 * s}v{2 * s}h{-2 * s}z",
        2: f"M{x} {y - 1.3 * r}l{1.3 * r} {1.3 * r}l{-1.3 * r} {1.3 * r}l{-1.3 * r} {-1.3 * r}z",
        3: f"M{x} {y - 1.2 * r}l{1.2 * r} {2.1 * r}h{-2.4 * r}z",
        4: f"M{x} {y + 1.2 * r}l{1.2 * r} {-2.1 * r}h{-2.4 * r}z",
        5: f"M{x - s} {y}h{2 * s}M{x} {y - s}v{2 * s}",
    }[shape]
    return element("path", d=path, class_="cross" if shape == 5 else "fill")


def tick_text(value: float) -> str:
    """A number as short as an axis needs it."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.5g}"
