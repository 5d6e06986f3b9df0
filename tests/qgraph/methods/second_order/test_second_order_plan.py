"""Second-order rounding in plans: the operands it reads, the codes that plans hold, and what it gains."""

from __future__ import annotations

import dataclasses
from importlib.resources import files

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.errors import PlanError
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.methods.second_order.operands import as_rows, from_rows, rows
from qgraph.methods.second_order.round import SecondOrderConfig, round_weights
from qgraph.observe.relay import Relay
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import prepare
from qgraph.plan import codes as weights
from qgraph.plan.grids import initial_plan
from qgraph.plan.held_codes import from_text, to_text
from qgraph.plan.plan import QuantPlan, Rounding, WeightQuant
from qgraph.plan.request import choose_recipe
from qgraph.plan.saturation import largest_pair, saturated
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(4)
DEMO = files("qgraph") / "demo_assets"

LAYERS = {
    "padded, with stride and dilation": ("Conv<strides=[2, 1], pads=[1, 2, 0, 1], dilations=[1, 2]>", (5, 4, 3, 3), 1),
    "grouped": ("Conv<group=2, pads=[1, 1, 1, 1]>", (6, 2, 3, 3), 1),
    "depthwise, same upper": ('Conv<group=4, auto_pad="SAME_UPPER", strides=[2, 2]>', (4, 1, 3, 3), 1),
    "same lower": ('Conv<auto_pad="SAME_LOWER", strides=[2, 2]>', (3, 4, 2, 2), 1),
    "matrix": ("MatMul", (9, 5), 1),
    "matrix on the left": ("MatMul", (3, 8), 0),
}


def made(operator: str, shape: tuple[int, ...], index: int) -> Model:
    order = "x, w" if index else "w, x"
    head = '<ir_version: 10, opset_import: ["": 21]> g (float[2, 4, 8, 9] x) => (float[a, b, c, d] y)'
    numbers = ", ".join(f"{v:.4f}" for v in RNG.normal(size=int(np.prod(shape))))
    sizes = ", ".join(map(str, shape))
    return prepare(ir.from_onnx_text(f"{head} <float[{sizes}] w = {{{numbers}}}> {{ y = {operator}({order}) }}"))


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weights_are_results(name):
    net = made(*LAYERS[name])
    layer = GraphView(net).layers[0]
    x = RNG.normal(size=(2, 4, 8, 9)).astype(np.float32)
    (y,) = Session(net.ir_model).run_list({"x": x})
    for most in (10_000, 7):
        found = rows(layer, x, y, most, np.random.default_rng(0))
        weight = as_rows(layer, layer.weight_array())
        grouped = weight.reshape(len(found.operands), -1, weight.shape[1])
        results = np.einsum("gnk,gok->ngo", found.operands, grouped).reshape(len(found.results), -1)
        np.testing.assert_allclose(results, found.results, rtol=1e-4, atol=1e-4)
        assert len(found.results) == 7 or most > 7
    assert (from_rows(layer, weight, layer.weight_array().shape) == layer.weight_array()).all()


@pytest.fixture(scope="module")
def digits():
    net = prepare(load(DEMO / "digits.onnx"))
    data = open_data(DEMO / "digits_calibration.npz", net)
    return net, data, observe(net, data)


def four_bits(digits, **options: object) -> QuantPlan:
    net, _, observed = digits
    return initial_plan(GraphView(net), choose_recipe("aciq", True, weights=4, **options), observed)


def error(digits, plan: QuantPlan, *, format: str = "float") -> float:
    net, data, _ = digits
    have, want = (Session(m) for m in (lower(net, plan, format=format), net.ir_model))
    batches = list(data.batches(64))
    return float(np.mean([np.square(have.run_list(b.feeds)[0] - want.run_list(b.feeds)[0]).mean() for b in batches]))


def test_where_squares_overflow_codes_stay(digits):
    net, data, _ = digits
    (batch,) = data.choose(range(16)).batches(16)
    huge = open_data({name: x * np.float32(1e30) for name, x in batch.feeds.items()}, net)
    plan = four_bits((net, huge, observe(net, huge)))
    assert round_weights(plan, GraphView(net), huge).layers == plan.layers


def test_relay_computes_what_a_session_does(digits):
    net, data, _ = digits
    batches = list(data.batches(16))[:3]
    layers = GraphView(net).layers
    names = [str(layer.input.name) for layer in layers if layer.input.producer() is not None]
    whole = Session(net.ir_model, outputs=[*names, *(str(v.name) for v in net.graph.outputs)])
    relay = Relay(net.ir_model, batches)
    seen = {name: relay.value(GraphView(net).values[name]) for name in dict.fromkeys(names)}
    seen |= {str(v.name): relay.value(v) for v in net.graph.outputs}
    for index, batch in enumerate(batches):
        for name, wanted in whole.run(batch.feeds).items():
            np.testing.assert_allclose(seen[name][index], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("activations", "share"), [(8, 0.6), (4, 0.75)])
def test_outputs_are_closer_and_the_file_computes_them(digits, activations, share):
    """At 4 bits, much of the error is that of rounding activations, of which weights can only undo a part."""
    net, data, observed = digits
    plan = four_bits(digits, activations=activations)
    better = round_weights(plan, GraphView(net), data, observed=observed)
    assert error(digits, better) < share * error(digits, plan)
    assert error(digits, better, format="qdq") == pytest.approx(error(digits, better), rel=0.15)
    assert {q.name: q.weight.bits for q in better.layers} == {q.name: q.weight.bits for q in plan.layers}


def test_plan_keeps_codes_through_json_and_on_any_number_of_threads(digits):
    net, data, observed = digits
    plan, found = four_bits(digits), []
    for threads in (1, 2):
        job = Job(threads=threads)
        found.append(round_weights(plan, GraphView(net), data, observed=observed, job=job))
    assert found[0] == found[1]
    read = QuantPlan.from_json(found[0].to_json())
    assert read == found[0]
    assert all(quant.weight.codes for quant in read.layers if quant.weight.bits == 4)
    layer = GraphView(net).by_name[read.layers[1].name]
    codes = weights.codes(layer.weight_array(), read.layers[1].weight)
    nearest = weights.codes(layer.weight_array(), dataclasses.replace(read.layers[1].weight, codes=""))
    assert codes.shape == nearest.shape
    assert 0 < np.mean(codes != nearest) < 0.9


def test_weights_alone_without_quantized_activations(digits):
    net, data, observed = digits
    plan = four_bits(digits, activations=None)
    better = round_weights(plan, GraphView(net), data, observed=observed, config=SecondOrderConfig(samples=64))
    assert error(digits, better) < 0.4 * error(digits, plan)


def test_products_of_matrices_get_codes_and_shifts():
    """A MatMul has no bias: its shift is an Add that is made while the network runs."""
    first, second = (", ".join(f"{v:.4f}" for v in RNG.normal(size=12 * 10)) for _ in range(2))
    net = prepare(
        ir.from_onnx_text(
            f"""<ir_version: 10, opset_import: ["": 21]> g (float[N, 12] x) => (float[N, 12] z)
            <float[12, 10] v = {{{first}}}, float[10, 12] w = {{{second}}}>
            {{ a = MatMul(x, v) b = Relu(a) z = MatMul(b, w) }}"""
        )
    )
    x = (RNG.normal(size=(400, 12)) @ RNG.normal(size=(12, 12)) + 1).astype(np.float32)
    plan = initial_plan(GraphView(net), choose_recipe("aciq", True, weights=3, edge_bits=3, activations=None), None)
    better = round_weights(plan, GraphView(net), open_data(x, net), config=SecondOrderConfig(batch=50))
    (want,) = Session(net.ir_model).run_list({"x": x})
    errors = [Session(lower(net, p, format="float")).run_list({"x": x})[0] - want for p in (plan, better)]
    assert np.square(errors[1]).mean() < 0.6 * np.square(errors[0]).mean()
    assert np.abs(errors[1].mean(axis=0)).max() < 0.2 * np.abs(errors[0].mean(axis=0)).max()
    assert all(quant.weight.codes and quant.bias_shift for quant in better.layers)


@pytest.mark.parametrize(("index", "operator"), [(1, "MatMul"), (1, "Gemm<transB = 1>")])
@pytest.mark.parametrize("activations", [None, "dynamic"])
def test_groups_are_rounded_and_stay_whole_multiples(index, operator, activations):
    """A channel's factor and gain become part of its unit, so that kernels still add up whole numbers."""
    shape = (40, 24) if operator == "MatMul" else (24, 40)
    numbers = ", ".join(f"{v:.4f}" for v in RNG.laplace(size=40 * 24))
    net = prepare(
        ir.from_onnx_text(
            f"""<ir_version: 10, opset_import: ["": 21]> g (float[N, 40] x) => (float[N, 24] z)
            <float[{shape[0]}, {shape[1]}] w = {{{numbers}}}> {{ z = {operator}(x, w) }}"""
        )
    )
    x = (RNG.normal(size=(400, 40)) @ RNG.normal(size=(40, 40))).astype(np.float32)
    recipe = choose_recipe("aciq", True, weights=3, edge_bits=3, group=16, activations=activations)
    plan = initial_plan(GraphView(net), recipe, None)
    better = round_weights(plan, GraphView(net), open_data(x, net), config=SecondOrderConfig(batch=50))
    (want,) = Session(net.ir_model).run_list({"x": x})
    files = [Session(lower(net, p, format="qdq")).run_list({"x": x})[0] for p in (plan, better)]
    errors = [np.square(have - want).mean() for have in files]
    assert errors[1] < 0.6 * errors[0]
    (quant,) = better.layers
    assert quant.weight.unit
    assert quant.weight.codes
    assert quant.weight.unit != plan.layers[0].weight.unit
    simulated = Session(lower(net, better, format="float")).run_list({"x": x})[0]
    np.testing.assert_allclose(files[1], simulated, atol=1e-3 * np.abs(want).max())


def test_weights_of_eight_bits_saturate_no_kernel_and_few_samples_do():
    """Codes of eight bits are chosen where no two neighbours sum to more than 16 bits hold."""
    net = made("Conv", (6, 4, 3, 3), 1)
    view = GraphView(net)
    x = RNG.normal(size=(6, 4, 8, 9)).astype(np.float32)
    data = open_data(x, net)
    observed = observe(net, data)
    plan = initial_plan(view, choose_recipe("aciq", True, weights=8, symmetric=True), observed)
    better = round_weights(plan, view, data, observed=observed)
    layer, (quant,) = view.layers[0], better.layers
    limit = largest_pair(layer, quant, better.operand_grids)
    assert quant.weight.codes
    assert quant.bias_shift
    assert limit == 128
    assert not saturated(layer, quant.weight, limit).any()


def test_values_that_nothing_depends_on_neither_widen_grids_nor_steer_codes():
    """Corners of feature maps may be huge without a use: here a mask removes the first column."""
    numbers = {n: ", ".join(f"{v:.4f}" for v in RNG.normal(size=64)) for n in "vuw"}
    net = prepare(
        ir.from_onnx_text(
            f"""<ir_version: 10, opset_import: ["": 21]> g (float[N, 8, 2, 6] x) => (float[N, 8, 2, 6] y)
            <float[8, 8, 1, 1] v = {{{numbers["v"]}}}, float[8, 8, 1, 1] u = {{{numbers["u"]}}},
             float[8, 8, 1, 1] w = {{{numbers["w"]}}}, float[6] mask = {{0, 1, 1, 1, 1, 1}}>
            {{ a = Conv(x, v) b = Conv(a, u) c = Mul(b, mask) y = Conv(c, w) }}"""
        )
    )
    x = (RNG.normal(size=(48, 8, 2, 6)) @ np.diag([12.0, 1, 1, 1, 1, 1])).astype(np.float32)
    (want,) = Session(net.ir_model).run_list({"x": x})
    sums, scales = [], []
    for rounding in ("nearest", "second-order"):
        made = qgraph.quantize(net.ir_model, x, weights=4, activations=4, rounding=rounding, measure=False, guard="off")
        sums.append(np.square(Session(made.model).run_list({"x": x})[0] - want).mean())
        scales.append(made.plan.operand_grids["a"].scale)
    assert scales[1] < 0.6 * scales[0]
    assert sums[1] < 0.3 * sums[0]


def test_option_reaches_the_file_and_the_plan_applies_to_the_model(tmp_path):
    options = {"weights": 3, "limit": 64, "measure": False}
    made = {
        rounding: qgraph.quantize(DEMO / "digits.onnx", DEMO / "digits_calibration.npz", rounding=rounding, **options)
        for rounding in ("nearest", "second-order")
    }
    again = qgraph.apply(DEMO / "digits.onnx", QuantPlan.from_json(made["second-order"].plan.to_json()))
    assert (
        ir.to_proto(again.ir_model).SerializeToString() == ir.to_proto(made["second-order"].model).SerializeToString()
    )
    assert made["nearest"].nbytes == pytest.approx(made["second-order"].nbytes, rel=0.02)
    assert not any(quant.weight.codes for quant in made["nearest"].plan.layers)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_as_text(bits):
    low = -(2 ** (bits - 1))
    codes = RNG.integers(low, -low, size=(5, 3, 3)).astype(np.int8)
    assert (from_text(to_text(codes, bits=bits, lowest=low), (5, 3, 3), bits=bits, lowest=low) == codes).all()


def test_text_that_is_no_code_is_refused():
    with pytest.raises(PlanError, match="holds 4 bytes of codes where a weight of shape"):
        from_text(to_text(np.zeros(8, np.int8), bits=4, lowest=-8), (3, 3), bits=4, lowest=-8)
    with pytest.raises(PlanError, match="are not base 85"):
        from_text('"', (1,), bits=4, lowest=-8)
    with pytest.raises(PlanError, match="no codes"):
        WeightQuant(bits=4, scale=(1.0,), rounding=Rounding(gamma_n=0.5), codes="00")
