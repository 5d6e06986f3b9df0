"""Layers whose operand is quantized by the values at hand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.bits_in_file import bits_in_file
from qgraph.assess.fused import inspect_fused
from qgraph.errors import PlanError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.lowering.dynamic import inverse
from qgraph.lowering.lower import lower
from qgraph.methods.guard.switches import Grid, Switches
from qgraph.onnxfile.load import load
from qgraph.onnxfile.opset import prepare
from qgraph.plan import codes
from qgraph.plan.plan import QuantPlan
from qgraph.plan.saturation import largest_pairs
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Batch

RNG = np.random.default_rng(17)


def projections(**weights: Any) -> onnx.ModelProto:
    """Three products that read one tensor, and a Gemm with all its attributes behind one of them."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n, 6, 32] x) => (float[n, 6, 32] q, float[n, 6, 32] k, float[m, 16] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        b = Add(v, bias)
        rows = Reshape(b, shape)
        y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(rows, wo, c)
    }"""
    model = onnx.parser.parse_model(text)
    sizes = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 48), "wo": (16, 48), "bias": (48,), "c": (16,)}
    constants = {name: RNG.normal(size=size).astype(np.float32) for name, size in sizes.items()} | weights
    constants["shape"] = np.array([-1, 48])
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def db(want: np.ndarray, have: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / max(np.square(want - have).sum(), 1e-30)))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.fixture
def fed() -> dict[str, np.ndarray]:
    return {"x": RNG.normal(size=(3, 6, 32)).astype(np.float32)}


@pytest.mark.filterwarnings("ignore:the errors of all weights")  # 2 bits
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_file_computes_what_the_plan_says_on_integers(bits: int, fed: dict[str, np.ndarray]) -> None:
    model = projections()
    result = qgraph.quantize(model, weights=bits, edge_bits=bits, activations="dynamic", measure=False)
    simulated = Session(lower(result.net, result.plan, format="float")).run_list(fed)
    in_file = Session(result.model).run_list(fed)
    # a value half-way between two codes of the Gemm's operand may go either way
    assert all(db(*pair) > least for *pair, least in zip(simulated, in_file, (110, 110, 50), strict=True))
    fused = inspect_fused(load(ir.to_proto(result.model)))
    assert {layer.name: layer.integer for layer in fused.layers} == dict.fromkeys("qkvy", True)
    assert bits_in_file(load(ir.to_proto(result.model)))["k"] == (bits, 8)


def test_close_to_float_without_data(fed: dict[str, np.ndarray]) -> None:
    model = projections()
    result = qgraph.quantize(model, activations="dynamic")
    assert result.data == "none"
    assert not result.plan.activations
    for want, have in zip(
        Session(load(model).ir_model).run_list(fed), Session(result.model).run_list(fed), strict=True
    ):
        assert db(want, have) > 34
    assert [layer.runs for layer in result.layers] == ["dynamic"] * 4
    assert result.quality is not None
    assert result.quality.integer_layers == 4


def test_a_gemm_whose_weight_is_not_transposed(model_from_text: Any) -> None:
    """Square, so that a transposed weight would fit as well."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[n, 16] x, float[16, 16] w, float[16] c) => (float[n, 16] y) { y = Gemm<alpha = 0.5>(x, w, c) }"""
    drawn = {name: RNG.normal(size=size).astype(np.float32) for name, size in (("w", (16, 16)), ("c", 16))}
    model = model_from_text(text, **drawn)
    x = RNG.normal(size=(5, 16)).astype(np.float32)
    result = qgraph.quantize(model, activations="dynamic", measure=False)
    assert operators(result.model)["MatMulInteger"] == 1
    assert db(*(Session(m).run_list({"x": x})[0] for m in (load(model).ir_model, result.model))) > 34


def test_channels_without_a_factor_have_no_inverse() -> None:
    np.testing.assert_array_equal(inverse(np.array([0.5, 0.0, 4.0], np.float32)), [2.0, 0.0, 0.25])


def test_layers_that_read_one_tensor_share_its_codes() -> None:
    result = qgraph.quantize(projections(), activations="dynamic", measure=False)
    assert operators(result.model)["DynamicQuantizeLinear"] == 2


def test_measured_and_predicted_errors_of_layers(fed: dict[str, np.ndarray]) -> None:
    data = RNG.normal(size=(16, 6, 32)).astype(np.float32)
    result = qgraph.quantize(projections(), data, activations="dynamic", guard="off")
    for layer in result.layers[:3]:
        assert layer.predicted_sqnr_db is not None
        assert layer.simulated_sqnr_db is not None
        assert layer.measured_sqnr_db == pytest.approx(layer.simulated_sqnr_db, abs=2.0)
        assert layer.predicted_sqnr_db == pytest.approx(layer.simulated_sqnr_db, abs=2.0)


def test_plan_round_trips_and_applies_to_the_same_bytes() -> None:
    model = projections()
    result = qgraph.quantize(model, weights=5, activations="dynamic", measure=False)
    plan = QuantPlan.from_json(result.plan.to_json())
    assert plan == result.plan
    assert all(layer.runs == "dynamic" for layer in plan.layers)
    applied = qgraph.apply(model, plan, measure=False)
    assert ir.to_proto(applied.ir_model).SerializeToString() == ir.to_proto(result.model).SerializeToString()


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_neighbours_can_saturate(symmetric: bool, fed: dict[str, np.ndarray]) -> None:
    """Weights at both ends of the grid, and an operand with its largest values side by side."""
    ends = np.where(np.arange(32)[:, None] % 4 < 2, 1, -1).astype(np.float32) + np.zeros((32, 32), np.float32)
    model = projections(wq=ends, wk=ends)
    result = qgraph.quantize(model, activations="dynamic", symmetric=symmetric, measure=False)
    feeds = {"x": np.broadcast_to(ends[:, 0] * 3, (3, 6, 32)).copy()}
    assert db(Session(load(model).ir_model).run_list(feeds)[0], Session(result.model).run_list(feeds)[0]) > 30
    view = GraphView(result.net)
    for quant in result.plan.layers[:2]:
        layer = view.by_name[quant.name]
        stored = codes.stored(codes.codes(layer.weight_array(), quant.weight), quant.weight)
        assert largest_pairs(layer, stored).max() <= 128


def test_shifts_of_biases_are_kept(fed: dict[str, np.ndarray]) -> None:
    model = projections()
    result = qgraph.quantize(model, activations="dynamic", measure=False)
    shifted = result.plan.map_layers(
        lambda q: dataclasses.replace(q, bias_shift=(1.5,) * len(q.weight.scale)) if q.name in "ky" else q
    )
    plain, moved = (Session(lower(result.net, plan, format="qdq")).run_list(fed) for plan in (result.plan, shifted))
    np.testing.assert_allclose(moved[1] - plain[1], 1.5, atol=1e-4)
    np.testing.assert_allclose(moved[2] - plain[2], 1.5, atol=1e-4)


def test_other_layers_run_in_floats_and_some_refuse_to_be_dynamic(digits: Any) -> None:
    result = qgraph.quantize(digits, activations="dynamic", measure=False)
    runs = {layer.op: layer.runs for layer in result.plan.layers}
    assert runs == {"Conv": "floats", "Gemm": "dynamic"}
    wrong = result.plan.map_layers(lambda q: dataclasses.replace(q, runs="dynamic"))
    with pytest.raises(PlanError, match="cannot be dynamic: its groups"):
        lower(result.net, wrong, format="qdq")


def test_nothing_to_search_or_train() -> None:
    with pytest.raises(UsageError, match="leaves no grid to search or to train"):
        qgraph.quantize(projections(), method="qrater", activations="dynamic")


def test_operands_have_switches_of_their_own(fed: dict[str, np.ndarray]) -> None:
    model = projections()
    plan = qgraph.quantize(model, activations="dynamic", measure=False).plan
    switches = Switches(prepare(model), plan, [Batch(feeds=fed, labels=None, count=3)])
    assert not switches.noise(()).any()
    q, k, _ = switches.noise([Grid("operand", "k")])
    assert q == 0 < k < 1e-3


def test_what_is_multiplied_apart_is_added_behind_the_bias() -> None:
    """So that onnxruntime fuses the bias with the product, and nothing else changes."""
    model = projections()
    net = prepare(model)
    view = GraphView(net)
    plan = qgraph.quantize(model, activations="dynamic", measure=False, guard="off").plan
    factors = tuple([0.0] + [1.0] * 31)

    def leave_out(quant: Any) -> Any:
        if len(view.by_name[quant.name].input.shape) != 3:
            return quant
        return dataclasses.replace(quant, weight=dataclasses.replace(quant.weight, input_scale=factors))

    made = lower(net, plan.map_layers(leave_out), format="qdq")
    fused = inspect_fused(load(ir.to_proto(made)))
    assert (
        fused.operators["Add"] == 3
    )  # one for each product that has a channel apart; the bias of `v` is in its kernel
    simulated = lower(net, plan.map_layers(leave_out), format="float")
    fed = {"x": RNG.normal(size=(3, 6, 32)).astype(np.float32)}
    for want, have in zip(Session(simulated).run_list(fed), Session(made).run_list(fed), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-3)
