"""The objective of a whole plan, to tell what a search gains over the plan that it started from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qgraph.lowering.simulate import simulate
from qgraph.methods.qrater.bench import Samples
from qgraph.methods.qrater.tensors import Tensors
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session, in_parallel


def mean_objective(plan: QuantPlan, model: Model, samples: Samples, tensors: Tensors) -> float:
    """The mean score of the quantized network over all samples; larger is better."""
    session = Session(simulate(model, plan), threads=1)

    def scores(batch: int) -> NDArray[np.float32]:
        feeds = {name: tensors.get(name, batch) for name in session.input_names}
        return samples.scores(batch, session.run_list(feeds))

    measured = list(in_parallel(scores, range(len(samples.counts))))
    return float(np.concatenate(measured).astype(np.float64).mean())
