"""No bias leaves the 32 bits of integer sums, and none is lost where a channel has no weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import qgraph
import qmath
from qgraph.graph.sites import GraphView
from qgraph.lowering.export import export
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.codes import accumulator_scale
from qgraph.plan.grids import activation_grid, weight_grid
from qgraph.plan.grouped import grouped_grid
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.plan.sums import bias_fits, with_room_for_biases, with_shared_weights
from qgraph.running.sessions import Session

HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('
CONV = (
    "float[N,4,6,6] x, float[8,4,3,3] w, float[8] b, float[4,8,1,1] v) => (float[N,4,6,6] y) {"
    " c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Conv(r, v) }"
)
GEMM = (
    "float[N,16] x, float[16,8] w, float[8] b, float[8,4] v) => (float[N,4] y) {"
    " c = Gemm(x, w, b) r = Relu(c) y = Gemm(r, v) }"
)


def sqnr(model, result, feeds):
    want, have = (np.asarray(Session(m).run_list(feeds)[0], np.float64) for m in (load(model).ir_model, result.model))
    return 10 * np.log10((want**2).sum() / ((want - have) ** 2).sum())


@pytest.mark.parametrize("factor", [1.0, 1e-5, 1e-9])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_channel_that_is_almost_dead_keeps_its_bias(model_from_text, factor, bits):
    rng = np.random.default_rng(0)
    w, b = rng.normal(0, 0.2, (8, 4, 3, 3)).astype(np.float32), rng.normal(0, 0.1, 8).astype(np.float32)
    w[0] *= factor
    b[0] = 3.0
    model = model_from_text(HEAD + CONV, w=w, b=b, v=rng.normal(0, 0.3, (4, 8, 1, 1)).astype(np.float32))
    x = rng.normal(size=(16, 4, 6, 6)).astype(np.float32)
    made = qgraph.quantize(model, x, method="minmax", weights=bits, edge_bits=bits)
    assert sqnr(model, made, {"x": x}) > 6 * bits - 13


@pytest.mark.parametrize("factor", [1e-2, 1e-4])
def test_a_gemm_whose_biases_dwarf_its_products(model_from_text, factor):
    rng = np.random.default_rng(1)
    w, b = (factor * rng.normal(0, 0.2, (16, 8))).astype(np.float32), rng.normal(0, 1e3, 8).astype(np.float32)
    model = model_from_text(HEAD + GEMM, w=w, b=b, v=rng.normal(0, 0.3, (8, 4)).astype(np.float32))
    x = rng.normal(size=(64, 16)).astype(np.float32)
    assert sqnr(model, qgraph.quantize(model, x), {"x": x}) > 40


def test_the_bias_of_a_channel_without_weights_is_exact(model_from_text):
    rng = np.random.default_rng(2)
    w, b = rng.normal(0, 0.002, (8, 4, 3, 3)).astype(np.float32), rng.normal(0, 1, 8).astype(np.float32)
    w[:2] = 0
    b[:2] = 0.4, -0.3
    model = model_from_text(HEAD + CONV, w=w, b=b, v=rng.normal(0, 0.3, (4, 8, 1, 1)).astype(np.float32))
    x = (np.abs(rng.normal(size=(32, 4, 6, 6))) * 80).astype(np.float32)
    for options in ({}, {"method": "minmax"}, {"per_channel": True, "weights": 4}):
        assert sqnr(model, qgraph.quantize(model, x, **options), {"x": x}) > 30


def planned(model_from_text, bias, scale):
    w = np.zeros((8, 4, 3, 3), np.float32)
    w[:] = 1e-7
    net = normalise(load(model_from_text(HEAD + CONV, w=w, b=bias, v=np.ones((4, 8, 1, 1), np.float32))))
    view = GraphView(net)
    grid = weight_grid(
        w.min((1, 2, 3)), w.max((1, 2, 3)), bits=8, granularity=qmath.Granularity(axis=0), symmetric=True
    )
    layer = view.layers[0]
    grids = (activation_grid("x", 0, 255 * scale, bits=8), activation_grid("r", 0, 10, bits=8))
    quant = LayerQuant(name=layer.name, op="Conv", weight=grid)
    return net, view, QuantPlan(model=net.digest, recipe="test", layers=(quant,), activations=grids)


def test_scales_are_widened_as_far_as_biases_need(model_from_text):
    bias = np.array([0, 0.5, 1, 2, 4, -8, 16, 32], np.float32)
    _, view, plan = planned(model_from_text, bias, 1.0)
    layer, safe = view.layers[0], with_room_for_biases(plan, view)
    assert not bias_fits(layer, plan.layers[0], plan.activations[0])
    assert bias_fits(layer, safe.layers[0], plan.activations[0])
    before, after = (np.asarray(p.layers[0].weight.scale) for p in (plan, safe))
    assert (after[:2] == before[:2]).all()
    assert (after[2:] > before[2:]).all()
    np.testing.assert_allclose(after[2:], np.abs(bias[2:]) / 2**30, rtol=1e-6)
    shifted = plan.map_layers(lambda quant: dataclasses.replace(quant, bias_shift=(100.0,) * 8))
    assert min(with_room_for_biases(shifted, view).layers[0].weight.scale) > 60 / 2**30


def test_the_largest_bias_that_fits_rounds_to_the_last_of_32_bits(model_from_text):
    _, view, plan = planned(model_from_text, np.zeros(8, np.float32), 1.0)
    layer, quant, operand = view.layers[0], plan.layers[0], plan.activations[0]
    step = accumulator_scale(quant.weight, operand).astype(np.float64)
    for code, fits in ((2.0**31 - 1.4, True), (2.0**31 - 0.4, False)):
        for sign in (1, -1):
            shifted = dataclasses.replace(quant, bias_shift=tuple(sign * code * step))
            assert bias_fits(layer, shifted, operand) is fits


def test_a_plan_whose_biases_overflow_runs_in_floats(model_from_text):
    """Edited plans too: onnxruntime would wrap the sums in silence."""
    net, _, plan = planned(model_from_text, np.full(8, 5, np.float32), 1.0)
    made = export(net, plan)
    x = np.zeros((1, 4, 6, 6), np.float32)
    (y,) = Session(made).run_list({"x": x})
    np.testing.assert_allclose(y, 40, rtol=0.01)


def test_steps_too_small_for_kernels_run_in_floats(model_from_text):
    rng = np.random.default_rng(3)
    for of_x, of_w in ((1e-36, 1.0), (1.0, 1e-36), (1e-20, 1e-19), (1e36, 1.0)):
        w = (of_w * rng.normal(0, 0.2, (8, 4, 3, 3))).astype(np.float32)
        v = rng.normal(0, 0.3, (4, 8, 1, 1)).astype(np.float32)
        model = model_from_text(HEAD + CONV, w=w, b=np.zeros(8, np.float32), v=v)
        x = (of_x * rng.normal(size=(16, 4, 6, 6))).astype(np.float32)
        assert sqnr(model, qgraph.quantize(model, x), {"x": x}) > 25, (of_x, of_w)


def test_a_weight_with_grids_of_different_shapes_keeps_both(model_from_text):
    """One scale for all of it, and one a channel: neither can take the other's place."""
    rng = np.random.default_rng(0)
    text = "float[N,8] x, float[8,8] w) => (float[N,8] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }"
    net = normalise(load(model_from_text(HEAD + text, w=rng.normal(size=(8, 8)).astype(np.float32))))
    view = GraphView(net)
    first, second = view.layers
    rows = weight_grid(np.full(8, -1.0), np.full(8, 2.0), bits=8, granularity=qmath.Granularity(axis=1), symmetric=True)
    grids = {first.name: rows, second.name: weight_grid(-1.0, 1.0, bits=8, symmetric=True)}
    layers = tuple(LayerQuant(name=name, op="MatMul", weight=grid) for name, grid in grids.items())
    plan = QuantPlan(model=net.digest, recipe="", layers=layers)
    assert with_shared_weights(plan, view) == plan


@pytest.mark.parametrize("transposed", [False, True])
def test_units_of_groups_are_widened_as_far_as_biases_need(model_from_text, transposed):
    """The steps of a channel's groups keep their multiples; other channels stay as they are."""
    rng = np.random.default_rng(4)
    weight, bias = rng.normal(0, 0.1, (64, 6)).astype(np.float32), np.array([0, 1, -4e6, 0.5, 9e6, 2], np.float32)
    call, shape = ("Gemm<transB=1>", "6,64") if transposed else ("Gemm", "64,6")
    text = f"float[N,64] x, float[{shape}] w, float[6] b) => (float[N,6] y) {{ y = {call}(x, w, b) }}"
    held = np.ascontiguousarray(weight.T) if transposed else weight
    view = GraphView(normalise(load(model_from_text(HEAD + text, w=held, b=bias))))
    (layer,) = view.layers
    along = qmath.Granularity(axis=1 - layer.output_axis, group=16)
    grid = grouped_grid(held, along, bits=3, symmetric=False, most=64)
    operand = activation_grid("x", 0, 1, bits=8)
    quant = LayerQuant(name=layer.name, op="Gemm", weight=grid)
    plan = QuantPlan(model=view.model.digest, recipe="", layers=(quant,), activations=(operand,))
    assert not bias_fits(layer, quant, operand)
    (safe,) = with_room_for_biases(plan, view).layers
    assert bias_fits(layer, safe, operand)
    np.testing.assert_array_equal(safe.weight.multiples, grid.multiples)
    wider = np.asarray(safe.weight.unit) / np.asarray(grid.unit)
    assert ((wider > 1) == (np.abs(bias) > 1e6)).all()
    np.testing.assert_allclose(wider[4] * grid.unit[4] * operand.scale, 9e6 / 2**30, rtol=1e-5)
    assert quant.weight.zero_point == safe.weight.zero_point


def test_layers_of_one_weight_share_its_widest_grid(model_from_text):
    """The most bits and, of those, the largest scale; what runs in floats takes the grid of integers."""
    text = "float[N,8] x, float[8,8] w) => (float[N,8] z) { h = MatMul(x, w) r = Relu(h) g = MatMul(r, w)"
    text += " s = Relu(g) z = MatMul(s, w) }"
    rng = np.random.default_rng(0)
    net = normalise(load(model_from_text(HEAD + text, w=rng.normal(size=(8, 8)).astype(np.float32))))
    view = GraphView(net)
    names = [layer.name for layer in view.layers]

    def shared(*quants):
        layers = tuple(
            LayerQuant(name=name, op="MatMul", weight=weight_grid(-c, c, bits=b, symmetric=True), runs=runs)
            for name, (c, b, runs) in zip(names, quants, strict=True)
        )
        plan = QuantPlan(model=net.digest, recipe="", layers=layers)
        return [(q.weight.bits, q.weight.scale[0]) for q in with_shared_weights(plan, view).layers], layers

    found, _ = shared((1.0, 8, "integers"), (2.0, 8, "integers"), (9.0, 4, "integers"))
    assert found == [(8, pytest.approx(2 / 127))] * 3
    found, layers = shared((1.0, 4, "integers"), (2.0, 8, "floats"), (1.0, 4, "integers"))
    assert found == [(q.weight.bits, q.weight.scale[0]) for q in layers], "no fewer bits than the layer was given"
    found, _ = shared((1.0, 8, "integers"), (3.0, 4, "floats"), (1.0, 8, "integers"))
    assert found == [(8, pytest.approx(1 / 127))] * 3
    found, _ = shared((1.0, 8, "floats"), (3.0, 4, "floats"), (1.0, 8, "floats"))
    assert found == [(8, pytest.approx(1 / 127))] * 3
