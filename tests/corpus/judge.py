"""The one question that every model of the corpus is asked: was it quantized soundly, or refused with a reason?

Sound means: the ONNX checker passes with shape inference, the interface is that of the float model (names, types,
shapes, dynamic axes, metadata), stock onnxruntime runs it, and its outputs are close to the float ones. How close they
can be is a property of the model (a logarithm near zero amplifies, a floor jumps, a sum cancels), so the float model is
its own measure: its inputs, and where that does not explain the error everything that its layers read and write, are
moved by one 8-bit step, and quantization may be at most `SLACK_DB` worse than that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, numpy_helper

import qgraph
from qgraph.errors import QGraphError

ENOUGH_DB = 20.0
"""Signal over noise at which outputs are close, whatever the model."""
SLACK_DB = 12.0
"""How much worse than a step of the inputs quantization may be: weights and inner tensors are rounded as well."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Feeds = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one model."""

    quantized: bool
    why: str = ""
    sqnr_db: float = np.inf


class Unsound(AssertionError):
    """Neither quantized soundly nor refused with a reason."""


def judge(model: onnx.ModelProto, feeds: Feeds, **options: Any) -> Verdict:
    """Quantize `model` with `feeds` as its calibration data, or without data where `feeds` are not passed on."""
    given = {"data": [feeds], "method": "minmax", "threads": 1} | options
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice; what is asked here is whether the result is right
            result = qgraph.quantize(model, **given)
            quantized = ir.to_proto(result.model)
            _ = result.to_dict()
    except QGraphError as error:
        if len(str(error)) < 20:
            raise Unsound(f"refused without a reason: {error!r}") from error
        return Verdict(quantized=False, why=str(error))
    onnx.checker.check_model(quantized, full_check=_passes_full_check(model))
    _check_interface(model, quantized)
    eight = all(given.get(what, 8) in (8, None) for what in ("weights", "activations"))
    return Verdict(quantized=True, sqnr_db=_check_outputs(model, quantized, feeds, close=eight))


def _passes_full_check(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the names of nodes: onnxruntime stumbles over two that are equal."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = ""
    return copy


def _check_interface(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    constants = {t.name for t in model.graph.initializer}
    for kind, before, after in (
        ("inputs", [v for v in model.graph.input if v.name not in constants], list(quantized.graph.input)),
        ("outputs", list(model.graph.output), list(quantized.graph.output)),
    ):
        if [_signature(v) for v in before] != [_signature(v) for v in after]:
            raise Unsound(f"{kind} changed from {before} to {after}")
    if {p.key: p.value for p in model.metadata_props} != {p.key: p.value for p in quantized.metadata_props}:
        raise Unsound("metadata_props changed")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, bytes]:
    return value.name, value.type.SerializeToString(deterministic=True)


def _check_outputs(model: onnx.ModelProto, quantized: onnx.ModelProto, feeds: Feeds, *, close: bool) -> float:
    before, after = session(anonymous(model)), session(quantized)
    expected, found = before.run(None, dict(feeds)), after.run(None, dict(feeds))
    moved = [_run(before, _moved(feeds, seed)) for seed in range(3)]
    worst, shaken = np.inf, None
    for index, (output, a, b) in enumerate(zip(model.graph.output, expected, found, strict=True)):
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
            continue
        if a.dtype != b.dtype or a.ndim != b.ndim:
            raise Unsound(f"output '{output.name}' is {b.dtype} of shape {b.shape}, the float model's {a.shape}")
        if not close:
            continue
        reached, possible = sqnr_db(a, b), _possible(a, moved, index)
        if reached < min(ENOUGH_DB, possible - SLACK_DB):
            shaken = shaken or [_run(session(_shaken(model, feeds, seed)), feeds) for seed in range(3)]
            possible = _possible(a, shaken, index)
        if reached < min(ENOUGH_DB, possible - SLACK_DB):
            raise Unsound(f"output '{output.name}' has {reached:.1f} dB where {possible:.1f} dB are possible")
        worst = min(worst, reached)
    return worst


def _possible(expected: np.ndarray, moved: list[list[Any] | None], index: int) -> float:
    return min(-np.inf if outputs is None else sqnr_db(expected, outputs[index]) for outputs in moved)


def _shaken(model: onnx.ModelProto, feeds: Feeds, seed: int) -> onnx.ModelProto:
    """The float model with a step of noise on whatever a layer reads or writes, weights included."""
    shaken = anonymous(model)
    constants = {t.name: numpy_helper.to_array(t) for t in shaken.graph.initializer}
    touched = {v for n in shaken.graph.node if n.op_type in LAYERS for v in (*n.input[:2], *n.output)} - {""}
    values = dict(constants) | dict(feeds)
    probe = anonymous(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=v) for v in sorted(touched - set(values)))
    if probe.graph.output:
        values |= dict(zip((o.name for o in probe.graph.output), session(probe).run(None, dict(feeds)), strict=True))
    noise = _moved({v: values[v] for v in touched}, seed)
    for name in touched:
        shaken.graph.initializer.append(numpy_helper.from_array(noise[name] - values[name], f"{name}/noise"))
    nodes = [helper.make_node("Add", [name, f"{name}/noise"], [f"{name}/shaken"]) for name in touched if name in feeds]
    nodes += [helper.make_node("Add", [n, f"{n}/noise"], [f"{n}/shaken"]) for n in touched if n in constants]
    for node in shaken.graph.node:
        node.input[:] = [f"{v}/shaken" if v in touched else v for v in node.input]
        nodes.append(node)
        for name in [v for v in node.output if v in touched]:
            nodes.append(helper.make_node("Add", [name, f"{name}/noise"], [f"{name}/shaken"]))
    for output in shaken.graph.output:
        if output.name in touched:
            output.name = f"{output.name}/shaken"
    copied = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del shaken.graph.node[:]
    shaken.graph.node.extend(copied)
    return shaken


def _run(runner: ort.InferenceSession, feeds: Feeds) -> list[Any] | None:
    """The outputs, or None where such values are outside of what the model computes at all."""
    try:
        return list(runner.run(None, dict(feeds)))
    except Exception:  # onnxruntime's errors have no common type
        return None


def _moved(feeds: Feeds, seed: int) -> dict[str, Any]:
    """Every float input moved by up to one step of an 8-bit grid over its range."""
    generator = np.random.default_rng(seed)

    def move(x: Any) -> Any:
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or not x.size:
            return x
        step = (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / 255
        return np.asarray(x + generator.uniform(-step, step, x.shape), x.dtype)

    return {name: move(x) for name, x in feeds.items()}


def sqnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """10 log10(signal / noise) over the values that are finite; -inf where shapes or finiteness differ."""
    if a.shape != b.shape:
        return -np.inf
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all():
        return -np.inf
    x, y = a[finite].astype(np.float64), b[finite].astype(np.float64)
    signal, noise = float((x**2).sum()), float(((x - y) ** 2).sum())
    if noise == 0:
        return np.inf
    return 10 * float(np.log10(signal / noise)) if signal else -np.inf
