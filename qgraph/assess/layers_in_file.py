"""How far every layer's result in the file is from the float model's, as onnxruntime runs the file.

The graph of the file is run with additional outputs. Where the result of a layer (and the activation that belongs to
it) is quantized, one more DequantizeLinear reads the same codes as the next layers; integer kernels stay as they are,
since codes may have several readers. A result that stays in floating point becomes an output itself, which can keep
onnxruntime from fusing it with what follows. Errors are those accumulated over all layers so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.verify import batch_size
from qgraph.errors import ModelError
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import fused_output
from qgraph.onnxfile.edit import append_node, unique_name
from qgraph.plan.plan import QuantPlan
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session, fits_one_file, in_parallel
from qgraph.samples.dataset import Batch, Dataset

SAMPLES, BYTES = 32, 1 << 30  # at most so many samples, and bytes of results, are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class InFile:
    """One layer's result: its power in the float model, the power of its error in the file, and its float range."""

    tensor: str
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
    layers = (layer for quant in plan.layers if not (layer := view.by_name[quant.name]).weight_only)
    results = {layer.name: str(fused_output(layer.output).name) for layer in layers}
    probe, seen = _exposed(quantized, set(results.values()))
    factors = {a.tensor: np.asarray(a.channel_scale, np.float64) for a in plan.activations if a.channel_scale}
    try:
        before = Session(view.model.ir_model, outputs=list(seen), threads=1)
        after = Session(probe, outputs=list(seen.values()), threads=1)
        size = batch_size(before, samples)
        few = samples.choose(range(_count(before, samples, size)))

        def run(batch: Batch) -> list[NDArray[np.float64]]:
            want, have = before.run(batch.feeds), after.run(batch.feeds)
            return [_compared(batch, want[t], have[name], factors.get(t)) for t, name in seen.items()]

        rows = []
        with progress.stage("measuring layers", few.count) as advance:
            for row in in_parallel(run, few.batches(size), workers=threads):
                rows.append(row)
                advance(size)
    except ModelError:
        return {}
    found = {}
    for tensor, parts in zip(seen, np.asarray(rows).transpose(1, 2, 0), strict=True):
        signal, noise, count, low, high = parts
        if count.sum() > 0 and np.isfinite(parts).all():
            total = count.sum()
            found[tensor] = InFile(
                tensor=tensor,
                signal=float(signal.sum() / total),
                noise=float(noise.sum() / total),
                low=float(low.min()),
                high=float(high.max()),
            )
    return {layer: found[tensor] for layer, tensor in results.items() if tensor in found}


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


def _count(session: Session, samples: Dataset, size: int) -> int:
    """How many samples keep within `BYTES` of results, judging by the first run."""
    nbytes = sum(array.nbytes for array in session.run_list(next(samples.batches(size)).feeds))
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
