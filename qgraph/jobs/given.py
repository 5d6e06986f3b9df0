"""What every job starts from: a model, and samples for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Unpack

from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.opset import prepare
from qgraph.samples.dataset import DataLike, Dataset, Reading, open_data
from qgraph.samples.layout import shaped


@dataclass(frozen=True, eq=False, kw_only=True)
class Given:
    """A model as loaded, the normalised network, and samples if there are any."""

    loaded: Model
    net: Model
    samples: Dataset | None


def open_given(
    model: ModelLike,
    data: DataLike | None,
    *,
    opset: int | None = None,
    least_opset: int = 0,
    fold_bn: bool = True,
    **reading: Unpack[Reading],
) -> Given:
    """Load and normalise a model, at `opset` or else at `least_opset` or a later one, and open the data for it."""
    loaded = load(model)
    shapes, axes = reading.get("shapes") or {}, reading.get("batch_axes") or {}
    shaped(loaded.input_values(), shapes, axes)  # fail before the work begins
    loaded = dataclasses.replace(loaded, shapes=shapes)
    if opset is None and loaded.opset < least_opset:
        opset = least_opset
    net = prepare(loaded, opset=opset, fold_bn=fold_bn)
    return Given(loaded=loaded, net=net, samples=None if data is None else open_data(data, net, **reading))
