"""Layer by layer: where the float model and quantized ones part ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.data import DataLike, Preprocessing, open_data
from qgraph.errors import UsageError
from qgraph.graph import GraphView, fused_output
from qgraph.measure import sqnr_db as ratio_db
from qgraph.model import Model, ModelLike, load, normalise
from qgraph.progress import SILENT, Progress
from qgraph.runtime import Session

SAMPLES = 64
BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerComparison:
    """SQNR in dB of one layer's result in every compared model (None where the model lacks the tensor, or is exact)."""

    layer: str
    tensor: str
    sqnr_db: tuple[float | None, ...]


def compare(
    reference: ModelLike,
    others: Sequence[ModelLike],
    data: DataLike,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int = SAMPLES,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> tuple[LayerComparison, ...]:
    """Error accumulated up to each layer's result, in graph order, over the first `limit` samples.

    Tensors are matched by name. Raises `UsageError` when a model shares no layer result with the reference.
    """
    base = normalise(load(reference))
    rivals = [load(other) for other in others]
    pairs = [(layer.name, str(fused_output(layer.output).name)) for layer in GraphView(base).layers]
    tensors = [tensor for _, tensor in pairs]
    present = [_shared(base, rival, tensors) for rival in rivals]
    samples = open_data(data, base, preprocessing=preprocessing, limit=limit)
    main = Session(base.ir_model, outputs=tensors, threads=threads)
    sessions = [Session(r.ir_model, outputs=names, threads=threads) for r, names in zip(rivals, present, strict=True)]
    signal = dict.fromkeys(tensors, 0.0)
    noise = [dict.fromkeys(names, 0.0) for names in present]
    with progress.stage("comparing", samples.count) as advance:
        for batch in samples.batches(BATCH):
            expected = main.run(batch.feeds)
            for tensor, value in expected.items():
                signal[tensor] += float(np.sum(value.astype(np.float64) ** 2))
            for session, sums in zip(sessions, noise, strict=True):
                for tensor, value in session.run(batch.feeds).items():
                    sums[tensor] += float(np.sum((value.astype(np.float64) - expected[tensor]) ** 2))
            advance(batch.count)
    return tuple(
        LayerComparison(
            layer=layer,
            tensor=tensor,
            sqnr_db=tuple(ratio_db(signal[tensor], sums.get(tensor, 0.0)) for sums in noise),
        )
        for layer, tensor in pairs
    )


def _shared(base: Model, rival: Model, tensors: list[str]) -> list[str]:
    floats = {name for name, value in GraphView(rival).values.items() if value.const_value is None}
    shared = [tensor for tensor in tensors if tensor in floats]
    if not shared:
        raise UsageError(
            f"{rival.source} has no layer result in common with {base.source}: compare models of the same network "
            f"whose tensors kept their names"
        )
    return shared
