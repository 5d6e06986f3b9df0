"""A chart with one row per layer, named at its left, from the first layer down to the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qgraph.report.charts import COLOURS, RADIUS, RIGHT, WIDTH, Axis, Series, bar, mark, tick_text
from qgraph.report.html import Markup, element
from qgraph.running.names import shortened

TOP, BOTTOM = 8, 38  # units above and below the rows
STEP, LEAST, TALLEST = 18.0, 4.0, 1100  # units of a row, at least, and of all of them
LETTERS, LETTER = 22, 7.0  # of a name beside its row, and units of one


def row_chart(
    title: str, names: Sequence[str], series: Sequence[Series], axis: Axis, *, notes: Mapping[int, str] | None = None
) -> Markup:
    """Draw points whose y is the index of a row, and x a value on the axis; `notes` are words in a row.

    Marks of different series in one row stand one below the other. Rows of many layers are lower, and not all named.
    """
    short = shortened(names, LETTERS)
    rows = _Rows(
        names=names,
        short=short,
        left=min(0.6 * WIDTH, 24 + LETTER * max(map(len, short.values()), default=0)),
        axis=axis,
        notes=notes or {},
        dodged=[s for s in series if not s.bars],
    )
    return element(
        "svg",
        element("title", title),
        rows.scale(),
        rows.labels(),
        [rows.draw(s) for s in series],
        viewBox=f"0 0 {WIDTH} {round(rows.height)}",
        role="img",
        class_="chart",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    names: Sequence[str]
    short: Mapping[str, str]
    left: float
    """Where the rows begin: behind the longest of their names."""
    axis: Axis
    notes: Mapping[int, str]
    dodged: Sequence[Series]

    @property
    def step(self) -> float:
        return min(STEP, max(LEAST, TALLEST / max(len(self.names), 1)))

    @property
    def height(self) -> float:
        return TOP + BOTTOM + self.step * max(len(self.names), 1)

    def across(self, value: float) -> float:
        return round(self.left + self.axis.place(value) * (WIDTH - self.left - RIGHT), 1)

    def down(self, index: float) -> float:
        return round(TOP + self.step * (index + 0.5), 1)

    def scale(self) -> Iterator[Markup]:
        bottom = self.height - BOTTOM
        for tick in self.axis.ticks():
            at = self.across(tick)
            yield element("line", x1=at, x2=at, y1=TOP, y2=bottom, class_="rule")
            yield element("text", tick_text(tick), x=at, y=bottom + 15, text_anchor="middle")
        middle = (self.left + WIDTH - RIGHT) / 2
        yield element("text", self.axis.label, x=middle, y=self.height - 6, text_anchor="middle", class_="label")

    def labels(self) -> Iterator[Markup]:
        every = max(1, round(14 / self.step + 0.49))
        for index in range(0, len(self.names), every):
            text = element("title", self.names[index]), self.short[self.names[index]]
            yield element("text", *text, x=self.left - 8, y=self.down(index) + 4, text_anchor="end")
        for index, note in self.notes.items():
            if index % every == 0:
                yield element("text", note, x=self.left + 4, y=self.down(index) + 4, class_="label")

    def draw(self, series: Series) -> Markup:
        found = sorted(series.finite(), key=lambda p: p.y)
        shift = 0.0
        if series in self.dodged and len(self.dodged) > 1:
            place = self.dodged.index(series) - (len(self.dodged) - 1) / 2
            shift = place * min(2 * RADIUS + 0.5, 0.8 * self.step / len(self.dodged))
        at = [(self.across(p.x), round(self.down(p.y) + shift, 1)) for p in found]
        parts: list[Markup] = []
        if series.line and len(at) > 1:
            parts.append(element("path", d="M" + "L".join(f"{x} {y}" for x, y in at), class_="line"))
        radius = min(RADIUS, 0.45 * self.step)
        for point, (x, y) in zip(found, at, strict=True):
            shape = mark(x, y, series.colour, radius)
            if series.bars:
                thick = 0.62 * self.step
                shape = bar(self.left, y - thick / 2, max(x - self.left, 0.0), thick)
            parts.append(element("g", element("title", point.title), shape))
        return element("g", parts, class_=f"c{series.colour % COLOURS}")
