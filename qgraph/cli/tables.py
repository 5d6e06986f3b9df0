"""Tables that fit the terminal: long names lose their middle, headers and sentences wrap, rows beyond forty fold."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qgraph.running.names import shortened

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

SHOWN = 40  # rows; the others are folded
_BETWEEN = 2  # spaces between columns, or one where names would be squeezed
_SENTENCE = 16  # a column with longer words than these characters together holds sentences, which may wrap
_LEAST_NAME, _LEAST_SENTENCE = 12, 18  # characters below which neither is squeezed


@dataclass(slots=True, kw_only=True)
class Table:
    """Rows under headers. The first `left` columns and those in `text` hold text, the very first names; others numbers.

    If rows have a `weight`, those of the largest weights are shown when there are too many, and `heaviest` says which
    these are.
    """

    title: str
    columns: Sequence[str]
    left: int = 1
    text: Sequence[int] = ()
    heaviest: str = ""
    rows: list[tuple[str | Text, ...]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add_row(self, *cells: str | Text, weight: float = 0.0) -> None:
        self.rows.append(cells)
        self.weights.append(weight)

    def lay_out(self, width: int | None, *, whole: bool = False) -> list[RenderableType]:
        """What rich prints in so many characters (None: as wide as it needs); `whole` folds no rows."""
        from rich.text import Text

        shown = range(len(self.rows)) if whole else self._unfolded()
        rows = [self.rows[index] for index in shown]
        parts: list[RenderableType] = [Text(self.title, style="bold"), self._grid(rows, width)]
        if len(rows) < len(self.rows):
            which = self.heaviest and f", {self.heaviest}"
            parts.append(Text(f"{len(rows)} of {len(self.rows):,} rows{which}; -v shows all", style="dim"))
        return parts

    def _unfolded(self) -> list[int]:
        """The rows to show, in their order: of equally heavy ones, the first."""
        by_weight = sorted(range(len(self.rows)), key=lambda index: -self.weights[index])
        return sorted(by_weight[:SHOWN])

    def _grid(self, rows: Sequence[Sequence[str | Text]], width: int | None) -> RenderableType:
        from rich import box
        from rich.table import Table as Grid

        between, widths = _BETWEEN, self._widths(rows, width, _BETWEEN)
        if rows and widths[0] < max(len(str(row[0])) for row in rows):
            between, widths = 1, self._widths(rows, width, 1)
        names = shortened((str(row[0]) for row in rows), widths[0])
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, between - 1, 0, 0))
        heads = [textwrap.wrap(head, max(size, 1)) for head, size in zip(self.columns, widths, strict=True)]
        tallest, texts = max(map(len, heads)), {*range(self.left), *self.text}
        for index, (lines, size) in enumerate(zip(heads, widths, strict=True)):
            head = "\n".join([*[""] * (tallest - len(lines)), *lines])
            grid.add_column(head, justify="left" if index in texts else "right", width=size, overflow="fold")
        for first, *others in rows:
            grid.add_row(names[first] if isinstance(first, str) else first, *others)
        return grid

    def _widths(self, rows: Sequence[Sequence[str | Text]], width: int | None, between: int) -> list[int]:
        """The characters of each column: as wide as its text, unless that is more than the terminal has."""
        cells = [[str(row[index]) for row in rows] for index in range(len(self.columns))]
        wanted = [max(1, *map(len, (head, *column))) for head, column in zip(self.columns, cells, strict=True)]
        if width is None or sum(wanted) <= (room := width + 1 - between * len(wanted)):
            return wanted
        given = [
            max([_longest_word(head), *map(len, column)]) for head, column in zip(self.columns, cells, strict=True)
        ]
        texts = sorted({*range(1, self.left), *self.text})
        sentences = [i for i in texts if given[i] > _SENTENCE and any(" " in cell for cell in cells[i])]
        over = sum(given) - room
        over -= _squeeze(given, sentences, over, _LEAST_SENTENCE if len(sentences) == 1 else _LEAST_NAME)
        _squeeze(given, [0], over, max(_LEAST_NAME, _longest_word(self.columns[0])))
        _spread(given, wanted, self.columns, room - sum(given))
        return given


def _squeeze(widths: list[int], which: Sequence[int], over: int, least: int) -> int:
    """Narrow the widest of these columns until `over` characters are saved; returns how many are."""
    saved = 0
    while saved < over and (wide := [i for i in which if widths[i] > least]):
        widths[max(wide, key=lambda i: widths[i])] -= 1
        saved += 1
    return saved


def _spread(widths: list[int], wanted: Sequence[int], heads: Sequence[str], left: int) -> None:
    """Give the characters that are left to the columns whose headers take the most lines."""
    while left > 0 and (narrow := [i for i in range(len(widths)) if widths[i] < wanted[i]]):
        widths[max(narrow, key=lambda i: len(textwrap.wrap(heads[i], widths[i])))] += 1
        left -= 1


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=1)
