"""The statistics of the training data in a network's BatchNormalization layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.onnxfile.edit import constant
from qgraph.running.sessions import Session

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchNorm:
    """One BatchNormalization, y = gain (x - mean) + shift per channel with gain = gamma / sqrt(variance + epsilon)."""

    input: str
    output: str
    mean: Vector
    std: Vector
    gain: Vector
    shift: Vector


def batch_norms(net: ir.Model) -> list[BatchNorm]:
    """Every BatchNormalization of `net` in inference form whose parameters do not depend on the data.

    Exporters write parameters as initializers or as chains of Identity, Cast, CastLike, Expand and Shape. Such a chain
    is run to get its value, and run on other data to see whether it depends on the data.
    """
    nodes = [n for n in net.graph if n.op_type == "BatchNormalization" and n.domain == ""]
    values = {v for n in nodes for v in n.inputs[1:5] if v is not None}
    arrays = {v.name: a for v in values if (a := constant(v)) is not None}
    hidden = [str(v.name) for v in values if v.name not in arrays]
    if hidden:
        arrays |= _computed(net, hidden)
    return [_batch_norm(n, arrays) for n in nodes if all(v is not None and v.name in arrays for v in n.inputs[1:5])]


def _batch_norm(node: ir.Node, arrays: dict[str | None, NDArray[np.generic]]) -> BatchNorm:
    gamma, beta, mean, variance = (np.asarray(arrays[v.name], np.float64) for v in node.inputs[1:5] if v is not None)
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    return BatchNorm(
        input=str(node.inputs[0].name if node.inputs[0] is not None else ""),
        output=str(node.outputs[0].name),
        mean=mean,
        std=np.sqrt(variance),
        gain=gamma / np.sqrt(variance + epsilon),
        shift=beta,
    )


def _computed(net: ir.Model, names: list[str]) -> dict[str | None, NDArray[np.generic]]:
    session = Session(net, outputs=names)
    by_name = {v.name: v for v in net.graph.inputs}
    first, second = (session.run(_noise([by_name[n] for n in session.input_names], seed)) for seed in (0, 1))
    return {name: first[name] for name in names if np.array_equal(first[name], second[name])}


def _noise(inputs: list[ir.Value], seed: int) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in inputs:
        shape = [d if isinstance(d, int) else 1 for d in value.shape or ()]
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        feeds[str(value.name)] = np.asarray(rng.normal(size=shape), dtype)
    return feeds
