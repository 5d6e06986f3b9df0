"""One look for every notebook: quiet axes, lines labelled where they end, a colour per bit-width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

INK, FAINT, PALE = "#222222", "#9a9a9a", "#d6d3d1"
ACCENT, SECOND, THIRD = "#c2410c", "#1d4ed8", "#15803d"
BITS = {2: "#7f1d1d", 3: "#c2410c", 4: "#d97706", 5: "#65a30d", 6: "#0f766e", 7: "#1d4ed8", 8: "#5b21b6"}


def use() -> None:
    """Set the defaults of every figure that follows."""
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.subplot.wspace": 0.24,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e8e8e8",
            "grid.linewidth": 0.6,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "lines.linewidth": 1.6,
            "legend.framealpha": 0.85,
            "legend.edgecolor": "none",
            "legend.fontsize": 9,
            "font.size": 10,
        }
    )


def panels(count: int = 1, *, height: float = 3.4, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """A row of axes as wide as a page."""
    figure, axes = plt.subplots(1, count, figsize=(9.6, height), squeeze=False, **options)
    return figure, list(axes[0])


def rows(count: int, *, ratios: Sequence[float], left: float = 0.0, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """A column of axes, `left` of the page kept free for long names."""
    figure, axes = plt.subplots(count, 1, figsize=(9.6, 3.8), squeeze=False, height_ratios=ratios, **options)
    figure.subplots_adjust(left=max(left, figure.subplotpars.left), hspace=0.08)
    return figure, list(axes[:, 0])


def label_end(axes: Axes, text: str, x: float, y: float, colour: str = INK) -> None:
    """Write `text` just right of a point."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=colour, fontsize=9)


def short(name: str, most: int = 26) -> str:
    """The end of a long name: exporters put the path of modules first."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def name_places(axes: Axes, names: Sequence[str]) -> None:
    """Names below the places 0, 1, 2, ...: broken at slashes, or upright where there are many."""
    few = len(names) <= 8
    labels = [short(name).replace("/", "/\n") if few else short(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=0 if few else 90, fontsize=None if few else 8)


def key(axes: Axes, columns: int = 4, *, drop: float = 0.04) -> None:
    """The legend of `axes`, `drop` of the figure's height below it, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -drop), ncols=columns)


def mark(axes: Axes, x: float, text: str, colour: str, *, height: float = 0.97) -> None:
    """A vertical line with its name beside the top."""
    axes.axvline(x, color=colour, linewidth=1.1)
    axes.annotate(
        text,
        (x, height),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        va="top",
        color=colour,
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
    )


def show() -> None:
    """Show the current figure once (a slider would otherwise leave a second copy)."""
    for axes in plt.gcf().axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _plain(axis)
    plt.show()


def _plain(axis: Axis) -> None:
    """Few ticks with plain numbers: powers of ten set as formulas take longer to draw than all the rest."""
    low, high = axis.get_view_interval()
    if not isinstance(axis.get_major_locator(), FixedLocator):
        axis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5), numticks=9))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
