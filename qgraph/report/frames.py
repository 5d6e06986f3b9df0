"""Results as data frames: the only module that imports pandas, and only when a frame is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qgraph.assess.layer_errors import LayerReport
from qgraph.errors import MissingPackageError

if TYPE_CHECKING:
    from pandas import DataFrame

    from qgraph.jobs.whatif import WhatIf
    from qgraph.plan.plan import QuantPlan

ERRORS = ("predicted_sqnr_db", "simulated_sqnr_db", "measured_sqnr_db")


def frame(rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """A frame of rows, by their `name`; raises `MissingPackageError` without pandas."""
    try:
        import pandas
    except ImportError:
        raise MissingPackageError('to_frame() needs pandas: pip install "qgraph-onnx[analysis]"') from None
    made = pandas.DataFrame(list(rows)).set_index("name")
    for column in made.columns:
        if column.startswith(ERRORS):
            made[column] = made[column].astype(float)  # None, where nothing is known, becomes NaN
        elif "bits" in column:
            made[column] = made[column].astype("Int64")
    return made


def layers_frame(layers: Iterable[LayerReport]) -> DataFrame:
    """One row per layer."""
    return frame({name: getattr(layer, name) for name in LayerReport.__dataclass_fields__} for layer in layers)


def changes_frame(found: WhatIf) -> DataFrame:
    """One row per layer that changes, with its bits, bytes and errors before and after."""
    kept = ("weight_bits", "activation_bits", "weight_bytes", "predicted_sqnr_db", "simulated_sqnr_db")
    return frame(
        {"name": pair[0].name}
        | {f"{name}_{when}": getattr(layer, name) for name in kept
           for when, layer in zip(("before", "after"), pair, strict=True)}
        for pair in found.layers
    )  # fmt: skip


def plan_frame(plan: QuantPlan) -> DataFrame:
    """One row per quantized layer of a plan: its bits and the ends of its scales."""
    return frame(
        {
            "name": layer.name,
            "op": layer.op,
            "runs": layer.runs,
            "weight_bits": layer.weight.bits,
            "granularity": str(layer.weight.granularity),
            "scales": len(layer.weight.scale),
            "least_scale": min(layer.weight.scale),
            "largest_scale": max(layer.weight.scale),
            "symmetric": layer.weight.symmetric,
            "bias_shift": bool(layer.bias_shift),
        }
        for layer in plan.layers
    )
