"""How far every layer's result in the file is from the float model's, as onnxruntime runs the file.

The graph of the file is run with additional outputs. Where the result of a layer (and the activation that belongs to
it) is quantized, one more DequantizeLinear reads the same codes as the next layers; integer kernels stay as they are,
since codes may have several readers. A result that stays in floating point becomes an output itself, which can keep
onnxruntime from fusing it with what follows. Errors are those accumulated over all layers so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.verify import first_run
from qgraph.errors import ModelError
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output
from qgraph.onnxfile.edit import append_node, unique_name
from qgraph.plan.plan import QuantPlan
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session, fits_one_file, in_parallel
from qgraph.samples.dataset import Batch, Dataset

SAMPLES, BYTES = 32, 1 << 27  # at most so many samples, and bytes of results, are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class InFile:
    """One layer's result: its power in the float model, the power of its error in the file, and its float range.

    `alone` is the power of what the float layer computes before the activation that belongs to it.
    """

    tensor: str
    alone: float
    signal: float
    noise: float
    low: float
    high: float


def layers_in_file(
    view: GraphView,
    plan: QuantPlan,
    quantized: ir.Model,
    samples: Dataset,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, InFile]:
    """The results of the plan's layers on the first `SAMPLES` samples, fewer where results are large.

    Leaves out layers whose result is missing from the file or not finite. Empty where the weights do not fit one file,
    or where the file does not run.
    """
    if not fits_one_file(quantized):
        return {}
    read = (layer for quant in plan.layers if not (layer := view.by_name[quant.name]).weight_only)
    results = {layer.name: str(fused_output(layer.output).name) for layer in read}
    probe, seen = _exposed(quantized, set(results.values()))
    factors = {a.tensor: np.asarray(a.channel_scale, np.float64) for a in plan.activations if a.channel_scale}
    layers = [name for name, tensor in results.items() if tensor in seen]
    activated = [name for name in layers if str(view.by_name[name].output.name) != results[name]]
    try:
        before = _with_powers(view, activated, list(seen))
        after = Session(probe, outputs=list(seen.values()), threads=1)

        def compare(batch: Batch, want: list[NDArray[Any]]) -> list[NDArray[np.float64]]:
            have = after.run(batch.feeds)
            pairs = zip(want, seen.items(), strict=False)
            powers = np.array(want[len(seen) :], np.float64)
            return [*(_compared(batch, a, have[name], factors.get(t)) for a, (t, name) in pairs), powers]

        size, first, want = first_run(before, samples)
        rest = samples.choose(range(first.count, _count(samples, first.count, want)))
        rows = [compare(first, want)]
        del want
        with progress.stage("measuring layers", rest.count) as advance:
            runs = (lambda batch: compare(batch, before.run_list(batch.feeds)), rest.batches(size))
            for row in in_parallel(*runs, workers=threads):
                rows.append(row)
                advance(size)
    except ModelError:
        return {}
    *compared, powers = (np.array(parts) for parts in zip(*rows, strict=True))
    parts = dict(zip(seen, compared, strict=True))
    alone = dict(zip(activated, powers.mean(axis=0).tolist(), strict=True))
    usable = [name for name in layers if np.isfinite(parts[results[name]]).all()]
    return {name: _in_file(results[name], parts[results[name]], alone.get(name)) for name in usable}


def _in_file(tensor: str, parts: NDArray[np.float64], alone: float | None) -> InFile:
    """The rows of `_compared` summed up; without an activation, the layer `alone` has the power of the result."""
    signal, noise, count, low, high = parts.T
    return InFile(
        tensor=tensor,
        alone=float(signal.sum() / count.sum()) if alone is None else alone,
        signal=float(signal.sum() / count.sum()),
        noise=float(noise.sum() / count.sum()),
        low=float(low.min()),
        high=float(high.max()),
    )


def _with_powers(view: GraphView, layers: Sequence[str], tensors: Sequence[str]) -> Session:
    """The float model with `tensors` as outputs, followed by the mean square of what each of `layers` computes."""
    net = view.model.ir_model.clone()
    values = ir.convenience.create_value_mapping(net.graph)
    powers = []
    for name in layers:
        value = values[str(view.by_name[name].output.name)]
        square = append_node(net.graph, "Mul", [value, value], {}).outputs[0]
        power = append_node(net.graph, "ReduceMean", [square], {"keepdims": 0}).outputs[0]
        power.type, power.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        powers.append(str(power.name))
    net.graph.sort()
    return Session(net, outputs=[*tensors, *powers], threads=1)


def _compared(
    batch: Batch, want: NDArray[Any], have: NDArray[Any], factor: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The sums of squares of result and error, the number of values, and the range; NaN where they do not match."""
    if want.shape != have.shape or want.dtype.kind != "f" or not want.size:
        return np.full(5, np.nan)
    exact, found = batch.real(want).astype(np.float64), batch.real(have).astype(np.float64)
    if not (np.isfinite(exact).all() and np.isfinite(found).all()):
        return np.full(5, np.nan)
    if factor is not None:  # in the file, the factors of the channels are part of the weights on both sides
        found = found * factor.reshape(1, -1, *[1] * (found.ndim - 2))
    error = (found - exact).ravel()
    flat = exact.ravel()
    return np.array([flat @ flat, error @ error, flat.size, flat.min(), flat.max()])


def _count(samples: Dataset, size: int, results: list[NDArray[Any]]) -> int:
    """How many samples keep within `BYTES` of results, judging by those of a first run of `size` samples."""
    nbytes = sum(array.nbytes for array in results)
    return min(samples.count, SAMPLES, max(size, BYTES * size // max(nbytes, 1)))


def _exposed(quantized: ir.Model, tensors: set[str]) -> tuple[ir.Model, Mapping[str, str]]:
    """The graph of the file with the results of layers as outputs, and the output's name for each tensor."""
    probe = quantized.clone()
    values = ir.convenience.create_value_mapping(probe.graph)
    seen = {}
    for tensor in sorted(tensors):
        value = values.get(tensor)
        if value is None or value.producer() is None:
            continue
        dequantizer = _behind(value)
        if dequantizer is not None:
            axis = dequantizer.attributes.get("axis")
            attributes = {} if axis is None else {"axis": axis.as_int()}
            copy = append_node(probe.graph, "DequantizeLinear", list(dequantizer.inputs), attributes).outputs[0]
            copy.name = unique_name(probe.graph, f"{tensor}/seen")
            copy.shape, copy.type = value.shape, value.type
            value = copy
        seen[tensor] = str(value.name)
    probe.graph.sort()
    return probe, seen


def _behind(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear behind a tensor that all nodes read quantized; None if a node reads the floats."""
    readers = [use.node for use in value.uses()]
    if not readers or value.is_graph_output() or any(node.op_type != "QuantizeLinear" for node in readers):
        return None
    codes: ir.Value | None = readers[0].outputs[0]
    while codes is not None:
        following = [use.node for use in codes.uses()]
        found = next((node for node in following if node.op_type == "DequantizeLinear"), None)
        if found is not None:
            return found
        codes = next((node.outputs[0] for node in following if node.op_type == "Min"), None)
    return None
