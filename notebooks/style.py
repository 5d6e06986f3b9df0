"""One look for every notebook: quiet axes, lines labelled where they end, a colour per bit-width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#222222", "#9a9a9a"
ACCENT, SECOND, THIRD = "#c2410c", "#1d4ed8", "#15803d"
BITS = {2: "#7f1d1d", 3: "#c2410c", 4: "#d97706", 5: "#65a30d", 6: "#0f766e", 7: "#1d4ed8", 8: "#5b21b6"}


def use() -> None:
    """Set the defaults of every figure that follows."""
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.grid": True,
            "grid.color": "#e8e8e8",
            "grid.linewidth": 0.6,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "lines.linewidth": 1.6,
            "legend.frameon": False,
            "font.size": 10,
        }
    )


def panels(count: int = 1, *, height: float = 3.4, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """A row of axes as wide as a page."""
    figure, axes = plt.subplots(1, count, figsize=(9.6, height), squeeze=False, **options)
    return figure, list(axes[0])


def label_end(axes: Axes, text: str, x: float, y: float, colour: str = INK) -> None:
    """Write `text` just right of a point."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=colour, fontsize=9)


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
    )


def show() -> None:
    """Show the current figure once (a slider would otherwise leave a second copy)."""
    plt.show()
