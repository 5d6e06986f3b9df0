"""How much a network's outputs depend on every position of its tensors.

An error e of an inner tensor t moves the outputs by J e, J = d outputs / d t. With independent signs r, the gradient
g = J^T r of r . outputs has E[g g^T] = J^T J (Hutchinson, 1990), so that

    E |J e|^2 ~ sum_i E[g_i^2] e_i^2

for errors that are independent of one another: the diagonal of the Gauss-Newton matrix of squared output errors, as in
block reconstruction (BRECQ, Li et al., 2021). It is averaged over channels and samples, so that what is left is a map
of positions with mean 1: gradients of single samples are noisy, and a MaxPool's are zero but for the largest value.
Every output is divided by its norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import QGraphError
from qgraph.gradient.build import gradient_name, gradients
from qgraph.gradient.emit import append, append_all
from qgraph.gradient.expression import constant, op, tensor
from qgraph.gradient.step import OPSET
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import raise_opset
from qgraph.running.job import Job
from qgraph.running.sessions import Session, in_parallel
from qgraph.samples.dataset import Dataset

Floats = NDArray[np.float32]
SAMPLES, BATCH = 64, 8
_LOSS = "random projection"
_MEMORY = 1 << 29  # bytes of activations of a batch, about


def important_positions(
    view: GraphView, names: Iterable[str], data: Dataset, *, sample_bytes: int = 0, job: Job
) -> dict[str, Floats]:
    """The importance of every position of some tensors: of a sample's shape behind axis 0, with 1 along channels.

    Channels are those of the layer that writes a tensor, else axis 1 of maps and the last of rows. Tensors whose
    positions differ from sample to sample are left out, and all are where an operator has no gradient.
    """
    written = {str(layer.output.name): layer.result_axis for layer in view.layers}
    axes: dict[str, int] = {}
    for name in dict.fromkeys(names):
        value = view.values[name]
        if value.producer() is not None and value.shape is not None and len(value.shape):
            axes[name] = written.get(name, 1 if len(value.shape) > 3 else -1) % len(value.shape)
    some = data.choose(range(0, data.count, -(-data.count // SAMPLES)))
    batches = [b.feeds for b in some.batches(int(np.clip(_MEMORY // max(4 * sample_bytes, 1), 1, BATCH)))]
    with job.progress.stage("importance", 1) as advance:
        try:
            found = importance(view.model, batches, axes, threads=job.threads)
        except QGraphError:  # an operator without a gradient, or a graph that onnxruntime does not load
            return {}
        advance(1)
    maps = {name: _map(arrays, [len(feeds[next(iter(feeds))]) for feeds in batches]) for name, arrays in found.items()}
    return {name: made for name, made in maps.items() if made is not None}


def counted(weights: Floats | None, values: NDArray[Any]) -> Floats | None:
    """A map for every sample of `values`, with 1 along channels; None where it does not fit them."""
    if weights is None or weights.ndim != values.ndim:
        return None
    if any(w not in (1, v) for w, v in zip(weights.shape[1:], values.shape[1:], strict=True)):
        return None
    return np.broadcast_to(weights, (len(values), *weights.shape[1:]))


def _map(arrays: Sequence[Floats], counts: Sequence[int]) -> Floats | None:
    """The mean over samples, divided by its mean; None where samples do not run along axis 0, or nothing counts."""
    if [len(a) for a in arrays] != list(counts) or len({a.shape[1:] for a in arrays}) > 1:
        return None
    mean = np.concatenate(arrays).mean(axis=0, keepdims=True, dtype=np.float64)
    whole = float(mean.mean())
    return (mean / whole).astype(np.float32) if np.isfinite(whole) and whole > 0 else None


def importance(
    model: Model, batches: Sequence[Mapping[str, NDArray[Any]]], axes: Mapping[str, int], *, threads: int | None = None
) -> dict[str, list[Floats]]:
    """The sums over channels of squared gradients, for every batch; `axes` are the channels' axes, kept with size 1.

    Nothing where no output is a tensor of floats. Raises `GradientError` where an operator on the way has no gradient.
    """
    forward = Session(model.ir_model, threads=1)
    first = forward.run(batches[0])
    first = {name: made for name, made in first.items() if isinstance(made, np.ndarray) and made.dtype.kind == "f"}
    if not first:
        return {}
    energy = {name: float(np.sum(np.square(made, dtype=np.float64))) or 1.0 for name, made in first.items()}
    session = Session(_projected(model, list(first), axes), threads=1)

    def one(index: int) -> list[Floats]:
        rng, feeds = np.random.default_rng([index, len(batches)]), dict(batches[index])
        results = forward.run(feeds)
        for name, total in energy.items():
            signs = rng.integers(0, 2, results[name].shape, np.int8).astype(np.float32) * 2 - 1
            feeds[f"signs:{name}"] = signs / np.float32(np.sqrt(total))
        return session.run_list({name: feeds[name] for name in session.input_names})

    rows = list(in_parallel(one, range(len(batches)), workers=threads))
    return {name: [row[i] for row in rows] for i, name in enumerate(axes)}


def _projected(model: Model, outputs: Sequence[str], axes: Mapping[str, int]) -> ir.Model:
    """A graph whose outputs are the sums of squares over channels of the gradients of a random projection."""
    net = raise_opset(model, max(model.opset, OPSET)).ir_model.clone()
    terms = []
    for value in [v for v in net.graph.outputs if v.name in outputs]:
        signs = ir.Value(name=f"signs:{value.name}", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
        net.graph.inputs.append(signs)
        terms.append(op.ReduceSum(tensor(value) * tensor(signs), keepdims=0))
    append(net, reduce(op.Add, terms), name=_LOSS)
    made = gradients(net, _LOSS, list(axes))
    values = {str(v.name): v for v in made.graph.outputs}
    made.graph.outputs.clear()
    found = {name: tensor(values[gradient_name(name)]) for name in axes}
    sums = {f"importance:{n}": op.ReduceSum(g * g, constant([axes[n]]), keepdims=1) for n, g in found.items()}
    append_all(made, sums)
    return made
