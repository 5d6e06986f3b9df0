"""Pictures of results, by matplotlib: the only module of the package that imports it, and only when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qmath.grid import Grid

DATA, GRID = "#9ca3af", "#c2410c"
MOST_LEVELS = 32  # levels that are drawn as lines: more would be a block


class Clip(Protocol):
    """What is drawn of a clip."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...

    @property
    def bits(self) -> int: ...

    @property
    def method(self) -> str: ...

    @property
    def _seen(self) -> tuple[Any, Any] | None: ...

    @property
    def grid(self) -> Grid: ...

    @property
    def sqnr_db(self) -> float: ...


def axes_to_draw_on(ax: Axes | None, **size: Any) -> Axes:
    """The given axes, or those of a new figure; ImportError, with the command to type, without matplotlib."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plot() needs matplotlib: pip install "qgraph-onnx[analysis]"') from error
    return plt.subplots(layout="constrained", **size)[1]


def plot_clip(clip: Clip, ax: Axes | None = None) -> Axes:
    """Draw the data of a clip as a histogram, with the levels of its grid and its two ends."""
    ax = axes_to_draw_on(ax, figsize=(6.4, 3.2))
    if clip._seen is not None:
        counts, edges = clip._seen
        ax.stairs(counts, edges, fill=True, color=DATA, label="data")
    grid = clip.grid
    levels = float(grid.low) + float(grid.scale) * np.arange(grid.levels)
    if levels.size <= MOST_LEVELS:
        ax.vlines(levels, 0, 1, transform=ax.get_xaxis_transform(), color=GRID, linewidth=0.6, alpha=0.6)
    for end in {clip.low, clip.high} - {0.0}:
        ax.axvline(end, color=GRID, linewidth=1.4)
    ax.set_yscale("log")
    ax.set_xlabel("value")
    ax.set_ylabel("count")
    ax.set_title(
        f"{clip.bits} bits, {clip.method}: {clip.low:.3g} to {clip.high:.3g}, {clip.sqnr_db:.1f} dB", loc="left"
    )
    return ax
