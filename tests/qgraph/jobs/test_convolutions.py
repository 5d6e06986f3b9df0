"""Convolutions between floats, whose operands have other outliers in every sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import qgraph
from qgraph.graph.sites import GraphView
from qgraph.jobs import convolutions
from qgraph.jobs.convolutions import between_floats
from qgraph.jobs.layer_by_layer import Mix, Ways, best_mix, traded
from qgraph.onnxfile.load import load
from qgraph.onnxfile.opset import prepare
from qgraph.running.sessions import Session
from tests.corpus.transformers import Builder

CHANNELS, LENGTH, OUTPUTS = 64, 1024, 192


def normalised_then_convolved() -> onnx.ModelProto:
    """Channels normalised along positions, a convolution over these, Gelu, the largest per channel, and classes."""
    b = Builder(7)
    ones, zeros = np.ones(LENGTH, np.float32), np.zeros(LENGTH, np.float32)
    x = b.op("LayerNormalization", "x", b.constant("gain", ones), b.constant("shift", zeros), name="norm")
    y = b.op("Conv", x, b.random("conv.weight", OUTPUTS, CHANNELS, 5, scale=(5 * CHANNELS) ** -0.5), name="conv")
    half = b.op("Mul", y, b.constant("half", np.float32(0.5)))
    inner = b.op("Erf", b.op("Mul", y, b.constant("root", np.float32(0.5**0.5))))
    gelu = b.op("Mul", half, b.op("Add", inner, b.constant("one", np.float32(1))))
    pooled = b.op("Flatten", b.op("GlobalMaxPool", gelu))
    b.nodes.append(
        helper.make_node("MatMul", [pooled, b.random("head", OUTPUTS, 10, scale=OUTPUTS**-0.5)], ["y"], name="head")
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, LENGTH])]
    return b.model(inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])])


def samples(count: int, seed: int, *, loud: bool = True) -> np.ndarray:
    """Noise; in one sample of eight, a position of some channels is all there is in them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, CHANNELS, LENGTH))
    for sample in x[::8] if loud else ():
        channels = rng.choice(CHANNELS, 4, replace=False)
        sample[channels] *= 0.01
        sample[channels, rng.integers(0, LENGTH, 4)] = 1000
    return x.astype(np.float32)


def one_by_one(model: ir.Model, fed: np.ndarray) -> np.ndarray:
    session = Session(model)
    return np.concatenate([session.run_list({"x": fed[i : i + 1]})[0] for i in range(len(fed))])


def runs(result: qgraph.Result) -> Mapping[str, str]:
    return {layer.name: layer.runs for layer in result.plan.layers}


def quantized(model: onnx.ModelProto, data: np.ndarray, **options: Any) -> qgraph.Result:
    return qgraph.quantize(model, data, guard="off", **options)


def test_outliers_of_single_samples_leave_the_grids_of_others_alone() -> None:
    model, data, fresh = normalised_then_convolved(), samples(32, 1), samples(24, 2)
    best, static = quantized(model, data), quantized(model, data, activations=8)
    assert runs(best)["conv"] == "dynamic"
    assert any("1 convolution run on dynamic grids" in note for note in best.plan.notes)
    assert set(runs(static).values()) == {"integers"}
    want = one_by_one(load(model).ir_model, fresh)
    errors = [np.square(want - one_by_one(result.model, fresh)).sum() for result in (best, static)]
    assert 10 * np.log10(errors[1] / errors[0]) > 10


def test_outputs_that_would_miss_the_target_all_the_same_are_left_to_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "TARGET_DB", 60.0)
    model, data = normalised_then_convolved(), samples(32, 1)
    assert runs(quantized(model, data))["conv"] == "dynamic"
    left = qgraph.quantize(model, data)
    assert not any("dynamic grids" in note for note in left.plan.notes)


def test_a_mix_that_measures_worse_than_foretold_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(ways: Ways, *given: Any, **options: Any) -> Mix:
        return Mix(plan=ways.plans[ways.first], saves=0.0)

    monkeypatch.setattr(convolutions, "best_mix", hasty)
    assert runs(quantized(normalised_then_convolved(), samples(32, 1)))["conv"] == "dynamic"


def test_no_layer_is_measured_where_dynamic_grids_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[frozenset[str]]()

    def remembered(ways: Ways, *given: Any, **options: Any) -> Mix:
        asked.extend(ways.groups)
        return best_mix(ways, *given, **options)

    monkeypatch.setattr(convolutions, "best_mix", remembered)
    model, data = normalised_then_convolved(), samples(32, 1, loud=False)
    coarse = quantized(model, data, weights=3, edge_bits=3)
    assert runs(coarse)["conv"] == "integers"
    assert coarse.quality is not None
    assert coarse.quality.figure("dB").value < convolutions.ENOUGH_DB
    assert not asked


def test_a_convolution_that_reads_codes_of_another_stays_on_them() -> None:
    model = normalised_then_convolved()
    between = between_floats(quantized(model, samples(16, 1), activations=8, measure=False).plan, _view(model))
    assert between == {"conv"}
    chain = _chain()
    plan = quantized(chain, samples(16, 1), activations=8, measure=False).plan
    assert {layer.runs for layer in plan.layers} == {"integers"}
    assert not between_floats(plan, _view(chain))


def test_what_outputs_have_to_spare_is_time() -> None:
    noise, seconds = np.array([[[1.0], [20.0]], [[1.0], [90.0]]]) * 1e-6, np.array([[3.0, 1.0], [3.0, 1.0]])
    rest = np.zeros(1)
    assert traded(noise, seconds, rest=rest, worth_db=0.5, matters=0.0) == [0, 0]
    assert traded(noise, seconds, rest=rest, worth_db=0.5, matters=0.0, enough=3e-5) == [1, 0]
    assert traded(noise, seconds, rest=rest, worth_db=0.5, matters=0.0, enough=2e-4) == [1, 1]


def _view(model: onnx.ModelProto) -> GraphView:
    return GraphView(prepare(model))


def _chain() -> onnx.ModelProto:
    b = Builder(9)
    x = b.op("Conv", "x", b.random("a.weight", 16, CHANNELS, 3, scale=0.05), name="a")
    x = b.op("Conv", b.op("Relu", x), b.random("b.weight", 16, 16, 3, scale=0.1), name="b")
    x = b.op("Relu", x)
    b.nodes.append(helper.make_node("Conv", [x, b.random("c.weight", 4, 16, 3, scale=0.1)], ["y"], name="c"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, LENGTH])]
    return b.model(inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, LENGTH - 6])])
