"""Initialise batch normalisations with the statistics of their operands in the quantized network."""

from __future__ import annotations

import dataclasses

import numpy as np

from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.lsqplus.batch_norm import EPSILON
from qgraph.methods.lsqplus.parameters import rms
from qgraph.methods.lsqplus.trained import Trained
from qgraph.observe.statistics import observe
from qgraph.samples.dataset import Dataset


def with_statistics(trained: Trained, samples: Dataset, *, threads: int | None) -> Trained:
    """The parameters with measured statistics of batch normalisations, and gains and shifts that undo them."""
    if not trained.normalised:
        return trained
    net, plan = trained.release(trained.start)
    view = GraphView(net)
    tensors: dict[str, int | None] = {str(view.by_name[layer].output.name): 1 for layer in trained.normalised}
    quantized = dataclasses.replace(net, ir_model=simulate(net, plan))
    observed = observe(quantized, samples, tensors=tensors, histograms=False, threads=threads)
    slots, start = dict(trained.slots), trained.start.copy()
    for layer in trained.normalised:
        channels = observed[str(view.by_name[layer].output.name)].channels
        if channels is None:
            raise ValueError(f"no statistics per channel of what '{layer}' writes")
        mean, variance = (np.asarray(part, np.float32) for part in (channels.mean, channels.variance))
        gain = np.sqrt(variance + EPSILON)
        for kind, values in (("mean", mean), ("variance", variance), ("shift", mean), ("gain", gain)):
            trained.view(start, f"{kind}:{layer}")[...] = values
        for name in (f"gain:{layer}", f"shift:{layer}"):
            slots[name] = dataclasses.replace(slots[name], unit=rms(gain))
    return dataclasses.replace(trained, slots=slots, start=start)
