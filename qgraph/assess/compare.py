"""Compare quantized models with the float model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from qgraph.assess.bits_in_file import Bits, bits_in_file
from qgraph.errors import UsageError
from qgraph.graph.layers import LAYER_OPS, Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output, root_name
from qgraph.methods.aciq.clip import prior_rejected
from qgraph.observe.distance import ratio_db
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.plan import MAX_BITS
from qgraph.running.inner import bodies
from qgraph.running.outputs import arrays_of
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Dataset, Reading, open_data

SAMPLES = 64
BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerComparison:
    """The SQNR in dB of one layer's result in every compared model; None if it is missing there, or exact.

    `prior_rejected` says whether neither of ACIQ's priors describes the layer's operand on these samples, at the bits
    that the model gives it, so that `--clip aciq` uses the clip of least squared error instead; None where the operand
    is in floating point.
    """

    layer: str
    tensor: str
    sqnr_db: tuple[float | None, ...]
    prior_rejected: tuple[bool | None, ...] = ()


@keeps_threads
def compare(
    reference: ModelLike,
    others: Sequence[ModelLike],
    data: DataLike,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> tuple[LayerComparison, ...]:
    """Measure the error accumulated up to each layer's result, in graph order; behind them, the layers in bodies.

    What a layer in a Loop or Scan computes counts for all steps. A value that the other model does not have, because it
    took another branch or fewer steps, is as wrong as zero.

    Args:
        reference: the float model; tensors of the others are matched with its own by name.
        others: the models to compare with it.
        data: samples that all models take.
        limit: how many samples to use, the first ones.
        preprocessing, batch, shapes, batch_axes, threads, progress: as in `quantize`.

    Raises:
        UsageError: a model has no layer result in common with the reference.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> small = qgraph.quantize(network, activations=None, weights=4, measure=False).model
        >>> layers = qgraph.compare(network, [small], samples, limit=16)
        >>> min(layer.sqnr_db[0] for layer in layers) > 15
        True
    """
    reading.setdefault("limit", SAMPLES)
    base = normalise(load(reference))
    rivals = [load(other) for other in others]
    pairs = _results(base)
    if not pairs:
        raise UsageError(f"{base.source} has no Conv, Gemm or MatMul with a constant weight whose results to compare")
    tensors = [tensor for _, tensor in pairs]
    present = [_shared(base, rival, tensors) for rival in rivals]
    samples = open_data(data, base, **reading)
    main = Session(base.ir_model, outputs=tensors, threads=threads)
    sessions = [Session(r.ir_model, outputs=names, threads=threads) for r, names in zip(rivals, present, strict=True)]
    signal = dict.fromkeys(tensors, 0.0)
    noise = [dict.fromkeys(names, 0.0) for names in present]
    with progress.stage("comparing", samples.count) as advance:
        for taken in samples.batches(BATCH):
            expected = {tensor: _floats(found) for tensor, found in main.run(taken.feeds).items()}
            for tensor, arrays in expected.items():
                signal[tensor] += sum(float(np.sum(array**2)) for array in arrays)
            for session, sums in zip(sessions, noise, strict=True):
                for tensor, found in session.run(taken.feeds).items():
                    sums[tensor] += _error(expected[tensor], _floats(found))
            advance(taken.count)
    rejected = _rejected_priors(base, rivals, samples, threads)
    return tuple(
        LayerComparison(
            layer=layer,
            tensor=tensor,
            sqnr_db=tuple(ratio_db(signal[tensor], sums.get(tensor, 0.0)) for sums in noise),
            prior_rejected=tuple(of_rival.get(layer) for of_rival in rejected),
        )
        for layer, tensor in pairs
    )


def _results(base: Model) -> list[tuple[str, str]]:
    """The name of every layer whose result can be seen, and of that result; recurrent layers are left out."""
    view = GraphView(base)
    graphs = {base.graph, *bodies(base.graph)}
    halves = (x for x in view.weight_only if x.is_half and x.op in LAYER_OPS and x.node.graph in graphs)
    return [(layer.name, str(fused_output(layer.output).name)) for layer in (*view.observed, *halves)]


def _floats(found: NDArray[Any] | list[NDArray[Any]]) -> list[NDArray[np.float64]]:
    """A result, or those of all steps of a loop."""
    return [array.astype(np.float64) for array in arrays_of(found)]


def _error(want: list[NDArray[np.float64]], have: list[NDArray[np.float64]]) -> float:
    """The sum of squared errors."""
    total = 0.0
    for exact, found in zip_longest(want, have, fillvalue=np.zeros(0)):
        total += float(np.sum((found - exact) ** 2)) if exact.shape == found.shape else float(np.sum(exact**2))
    return total


def _shared(base: Model, rival: Model, tensors: list[str]) -> list[str]:
    graphs = {rival.graph, *bodies(rival.graph)}
    values = GraphView(rival).values.items()
    floats = {name for name, value in values if value.const_value is None and value.graph in graphs}
    shared = [tensor for tensor in tensors if tensor in floats]
    if not shared:
        raise UsageError(
            f"{rival.source} has no layer result in common with {base.source}: compare models of the same network "
            f"whose tensors kept their names"
        )
    return shared


def _rejected_priors(
    base: Model, rivals: Sequence[Model], samples: Dataset, threads: int | None
) -> list[dict[str, bool]]:
    """For each rival, whether ACIQ's prior is rejected for the operands that it quantizes, by layer."""
    view = GraphView(base)
    stored = [bits_in_file(rival) for rival in rivals]
    bits = [
        {layer.name: known for layer in view.layers if (known := _operand_bits(layer, of_rival)) is not None}
        for of_rival in stored
    ]
    read = {layer.name: root_name(layer) for layer in view.layers if any(layer.name in known for known in bits)}
    if not read:
        return [{} for _ in rivals]
    observed = observe(base, samples, tensors=dict.fromkeys(read.values()), threads=threads)

    @cache
    def rejected(tensor: str, width: int) -> bool:
        return prior_rejected(observed[tensor], bits=width, non_negative=view.non_negative.get(tensor, False))

    return [{layer: rejected(read[layer], width) for layer, width in known.items()} for known in bits]


def _operand_bits(layer: Layer, stored: Mapping[str, Bits]) -> int | None:
    found = stored.get(layer.name) or stored.get(str(layer.output.name))
    return None if found is None or found[1] is None or found[1] > MAX_BITS else found[1]
