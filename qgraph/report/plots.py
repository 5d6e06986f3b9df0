"""Results as pictures: the only module that imports matplotlib, and only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qgraph.assess.layer_errors import LayerReport
from qgraph.errors import MissingPackageError
from qgraph.report.rows import LETTERS
from qgraph.running.names import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BITS = {2: "#7f1d1d", 3: "#c2410c", 4: "#d97706", 5: "#65a30d", 6: "#0f766e", 7: "#1d4ed8", 8: "#5b21b6"}
FAINT = "#9ca3af"
NAMED = 24  # layers that have room for their names


def plot_layers(layers: Sequence[LayerReport], title: str, ax: Axes | None = None) -> Axes:
    """Draw the error of every layer: a bar for the measured one, coloured by bits, and a mark for the predicted one.

    A bar is the error in the file where that was measured, else the simulated one of the layer alone.
    """
    try:
        import matplotlib.pyplot as plt
        from matplotlib.patches import Patch
    except ImportError:
        raise MissingPackageError('plot() needs matplotlib: pip install "qgraph-onnx[analysis]"') from None
    if ax is None:
        width = min(4 + 0.3 * len(layers), 14)
        ax = plt.subplots(figsize=(width, 3.6), layout="constrained")[1]
    measured = [layer.measured_sqnr_db is not None for layer in layers]
    heights = [layer.measured_sqnr_db if any(measured) else layer.simulated_sqnr_db for layer in layers]
    for place, (layer, height) in enumerate(zip(layers, heights, strict=True)):
        if height is not None:
            ax.bar(place, height, color=BITS.get(layer.weight_bits, FAINT), zorder=2)
    predicted = [(i, layer.predicted_sqnr_db) for i, layer in enumerate(layers) if layer.predicted_sqnr_db is not None]
    handles = [Patch(color=BITS[b], label=f"{b}-bit weights") for b in sorted({layer.weight_bits for layer in layers})]
    if predicted:
        handles += ax.plot(
            *zip(*predicted, strict=True), "_", color="#111827", label="predicted, layer alone", zorder=3
        )
    few = len(layers) <= NAMED
    ax.set_xticks(range(len(layers)) if few else ax.get_xticks().tolist())
    if few:
        short = shortened((layer.name for layer in layers), LETTERS)
        ax.set_xticklabels([short[layer.name] for layer in layers], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.6, len(layers) - 0.4)
    ax.set_xlabel("" if few else "layer, in graph order")
    ax.set_ylabel("SQNR in the file, dB" if any(measured) else "SQNR of the layer alone, dB")
    ax.set_title(title, loc="left")
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return ax
