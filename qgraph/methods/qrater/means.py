"""Mean outputs of layers per channel, from which bias shifts are computed (Eq. 7)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.methods.qrater.bench import Samples, channel_sums
from qgraph.methods.qrater.tensors import Tensors
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import Session, in_parallel

Sums = NDArray[np.float64]


class FloatMeans:
    """E[y] of every layer of the float network, computed for all layers at the first request.

    Means are kept per batch, so that a shift found on some batches compares both networks on the same samples.
    """

    def __init__(self, model: Model, view: GraphView, samples: Samples, tensors: Tensors) -> None:
        self.model, self.view, self.samples, self.tensors = model, view, samples, tensors
        self._sums: dict[str, list[Sums]] | None = None

    def without_bias(self, layer: Layer, batches: int) -> Sums | None:
        """E[y] per output channel over the first batches, without the bias; None if the bias is not constant."""
        bias = constant(layer.bias)
        if layer.bias is not None and bias is None:
            return None
        if self._sums is None:
            self._sums = self._measured()
        mean = np.sum(self._sums[layer.name][:batches], axis=0) / sum(self.samples.counts[:batches])
        return np.asarray(
            mean - (0.0 if bias is None else layer.bias_factor * np.broadcast_to(bias.reshape(-1), mean.shape))
        )

    def _measured(self) -> dict[str, list[Sums]]:
        layers = self.view.layers
        session = Session(self.model.ir_model, outputs=[str(one.output.name) for one in layers], threads=1)

        def sums(batch: int) -> list[Sums]:
            feeds: dict[str, NDArray[Any]] = {name: self.tensors.get(name, batch) for name in session.input_names}
            found = dict(zip(session.output_names, session.run_list(feeds), strict=True))
            frame = self.samples.batches[batch]
            return [channel_sums(found[str(one.output.name)], one.result_axis, frame) for one in layers]

        by_batch = list(in_parallel(sums, range(len(self.samples.counts))))
        return {one.name: [batch[i] for batch in by_batch] for i, one in enumerate(layers)}
