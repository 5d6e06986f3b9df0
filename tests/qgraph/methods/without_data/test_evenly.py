"""Without samples, errors of weights cancel, and what is constant inside a network is made up for in biases."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
import qmath
from qgraph.errors import PlanError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.methods.without_data.evenly import evenly, what_cancels
from qgraph.methods.without_data.expected import expected_operands, known_operands, noise_operands
from qgraph.observe.propagation import known_moments
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan, Rounding, WeightQuant
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

DEMO = files("qgraph") / "demo_assets"
RNG = np.random.default_rng(8)


def text(*shape: int, scale: float = 1.0) -> str:
    return ", ".join(f"{v:.4f}" for v in scale * RNG.normal(size=int(np.prod(shape))))


def network() -> Model:
    """A convolution one of whose channels is constant, what reads it, and a depthwise convolution."""
    first = RNG.normal(size=(4, 3, 1, 1))
    first[2] = 0
    numbers = ", ".join(f"{v:.4f}" for v in first.ravel())
    return prepare(
        ir.from_onnx_text(
            f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 3, 16, 16] x) => (float[N, 4, 16, 16] z)
            <float[4, 3, 1, 1] a = {{{numbers}}}, float[4] b = {{0.1, 0.2, 30.0, -0.1}},
             float[4, 4, 1, 1] c = {{{text(4, 4)}}}, float[4, 1, 3, 3] d = {{{text(4, 1, 3, 3)}}}>
            {{ p = Conv(x, a, b) q = Conv(p, c) z = Conv<group = 4, pads = [1, 1, 1, 1]>(q, d) }}"""
        )
    )


def layers(net: Model) -> list[Layer]:
    return list(GraphView(net).layers)


def test_channels_that_are_constant_are_found_by_noise():
    found = list(noise_operands(network(), layers(network())).values())
    np.testing.assert_allclose(found[1].known, [0, 0, 30, 0], rtol=1e-5)
    assert not found[0].known.any()
    assert found[1].likely[2] < found[1].mean[2]


def test_models_that_read_more_than_floats_get_no_noise():
    net = prepare(
        ir.from_onnx_text(
            f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x, int64[N] n) => (float[N, 4] y)
            <float[4, 4] w = {{{text(4, 4)}}}> {{ y = Gemm(x, w) }}"""
        )
    )
    assert noise_operands(net, layers(net)) == {}


def test_means_behind_batch_normalization_are_known():
    net, loaded = prepare(load(DEMO / "digits.onnx")), load(DEMO / "digits.onnx")
    known = known_operands(net, layers(net), known_moments(normalise(loaded, fold_bn=False)))
    means = {name: found.likely for name, found in known.items()}
    data = open_data(DEMO / "digits_calibration.npz", net)
    names = [str(layer.input.name) for layer in layers(net) if layer.name in means]
    assert len(means) == 3
    session = Session(net.ir_model, outputs=names)
    real = session.run(next(iter(data.batches(256))).feeds)
    for layer in (one for one in layers(net) if one.name in means and one.op == "Conv"):
        measured = real[str(layer.input.name)].mean(axis=(0, 2, 3))
        assert np.abs(means[layer.name] - measured).mean() < 0.35 * np.abs(measured).mean()


def test_which_errors_cancel():
    net = prepare(
        ir.from_onnx_text(
            f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] z)
            <float[4, 4, 3, 3] a = {{{text(4, 4, 3, 3)}}}, float[4, 4, 1, 1] b = {{{text(4, 4)}}}>
            {{ p = Conv<pads = [1, 1, 1, 1]>(x, a) q = Conv(p, b) r = Relu(q) z = Conv(r, b) }}"""
        )
    )
    assert [what_cancels(layer) for layer in layers(net)] == ["taps", "", "sums"]


@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_are_closer_than_with_nearest_codes(bits):
    net = network()
    view = GraphView(net)
    start = initial_plan(view, choose_recipe("zeroq", False, weights=bits, edge_bits=bits, activations=None), None)
    better = evenly(start, view, expected_operands(net, list(view.layers), {}))
    smooth = RNG.normal(size=(8, 3, 19, 19))
    x = sum(smooth[:, :, i : i + 16, j : j + 16] for i in range(4) for j in range(4)).astype(np.float32) / 4
    (want,) = Session(net.ir_model).run_list({"x": x})
    errors = [
        np.square(Session(lower(net, p, format="float")).run_list({"x": x})[0] - want).mean() for p in (start, better)
    ]
    assert errors[1] < 0.5 * errors[0]
    file = Session(lower(net, better, format="qdq")).run_list({"x": x})[0]
    np.testing.assert_allclose(np.square(file - want).mean(), errors[1], rtol=1e-3)
    assert [quant.weight.even for quant in better.layers] == ["", "means" if bits == 4 else "", "taps"]


def test_a_grid_for_all_channels_is_not_even():
    with pytest.raises(PlanError, match="is even along channels"):
        WeightQuant(bits=4, scale=(1.0,), even="sums")
    axis = qmath.Granularity(axis=0)
    with pytest.raises(PlanError, match="what is likely of inputs"):
        WeightQuant(bits=4, scale=(1.0,), granularity=axis, even="means", input_spread=(-1.0,))
    with pytest.raises(PlanError, match="is not even"):
        WeightQuant(bits=4, scale=(1.0,), granularity=axis, even="taps", rounding=Rounding(gamma_n=0.5))


def test_the_job_takes_the_step_and_the_plan_keeps_it():
    model = DEMO / "digits.onnx"
    with np.load(DEMO / "digits_test.npz") as archive:
        x = archive["images"][:64].transpose(0, 3, 1, 2).astype(np.float32) / 255
    (want,) = Session(load(model).ir_model).run_list({"input": x})
    made = {
        corrected: qgraph.quantize(model, weights=4, activations=None, bias_correction=corrected, measure=False)
        for corrected in (True, False)
    }
    errors = {k: np.square(Session(r.model).run_list({"input": x})[0] - want).mean() for k, r in made.items()}
    assert errors[True] < errors[False]
    plan = made[True].plan
    assert any(layer.weight.even for layer in plan.layers)
    assert not any(layer.weight.even for layer in made[False].plan.layers)
    read = QuantPlan.from_json(plan.to_json())
    assert read == plan
    again = qgraph.apply(model, read, measure=False)
    np.testing.assert_array_equal(
        Session(again.ir_model).run_list({"input": x})[0], Session(made[True].model).run_list({"input": x})[0]
    )
