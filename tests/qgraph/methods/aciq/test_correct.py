"""Norm and shift corrections: what they promise, for every kind of layer."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest

import qgraph
import qmath
from qgraph.cli import main
from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.aciq.corrections import correct_means, correct_norm, correct_outputs, correct_shift
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.grids import weight_grid
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(7)

LAYERS = {
    "conv": ("N,4,9,9", "Conv(x, w)", (6, 4, 3, 3)),
    "groups": ("N,4,9,9", "Conv<group=2>(x, w)", (6, 2, 3, 3)),
    "depthwise": ("N,4,9,9", "Conv<group=4>(x, w)", (4, 1, 3, 3)),
    "conv1d": ("N,4,9", "Conv(x, w)", (5, 4, 3)),
    "transposed": ("N,4,5,5", "ConvTranspose<strides=[2,2]>(x, w)", (4, 3, 2, 2)),
    "transposed groups": ("N,4,5,5", "ConvTranspose<group=2, strides=[2,2]>(x, w)", (4, 3, 2, 2)),
    "gemm": ("N,4", "Gemm(x, w)", (4, 5)),
    "gemm with a scaled bias": ("N,4", "Gemm<transB=1, beta=0.5>(x, w)", (5, 4)),
    "matmul": ("N,3,4", "MatMul(x, w)", (4, 5)),
    "matmul left": ("N,4,3", "MatMul(w, x)", (5, 4)),
}


def three_bits(model_from_text, kind):
    """A layer, its plan at three bits, and inputs that are constant per channel."""
    dims, call, shape = LAYERS[kind]
    outputs = ",".join("ABCDE"[: dims.count(",") + 1])
    declared = f"float[{','.join(map(str, shape))}] w"
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[{dims}] x, {declared}) => (float[{outputs}] y) {{ y = {call} }}"""
    net = normalise(load(model_from_text(text, w=RNG.standard_normal(shape).astype(np.float32))))
    (layer,) = GraphView(net).layers
    weight = layer.weight_array()
    over = tuple(i for i in range(weight.ndim) if i != layer.scale_axis)
    grid = weight_grid(
        weight.min(over), weight.max(over), bits=3, granularity=qmath.Granularity(axis=layer.scale_axis), symmetric=True
    )
    quant = LayerQuant(name=layer.name, op=layer.op, weight=grid)
    x = np.zeros([2, *map(int, dims.split(",")[1:])], np.float32)
    axis = layer.input_axis % x.ndim
    x += RNG.standard_normal(x.shape[axis]).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return net, QuantPlan(model=net.digest, recipe="test", layers=(quant,)), x


@pytest.mark.parametrize("kind", LAYERS)
def test_the_expected_output_is_restored(model_from_text, kind):
    net, plan, x = three_bits(model_from_text, kind)
    observed = observe(net, open_data(x, net))
    corrected = correct_shift(plan, GraphView(net), observed)
    want = Session(net.ir_model).run({"x": x})["y"]
    before, after = (Session(simulate(net, p)).run({"x": x})["y"] for p in (plan, corrected))
    channel = {"conv1d": 1, "gemm": 1, "gemm with a scaled bias": 1, "matmul": 2, "matmul left": 1}.get(kind, 1)
    others = tuple(i for i in range(want.ndim) if i != channel)
    assert np.abs((want - before).mean(others)).max() > 0.01
    np.testing.assert_allclose(after.mean(others), want.mean(others), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_measured_output_is_restored(model_from_text, kind):
    """Also where inputs are not constant and zero padding counts, which expectations leave out."""
    net, plan, x = three_bits(model_from_text, kind)
    x = x + RNG.standard_normal(x.shape).astype(np.float32)
    corrected = correct_outputs(plan, GraphView(net), open_data(x, net))
    want = Session(net.ir_model).run({"x": x})["y"]
    before, after = (Session(simulate(net, p)).run({"x": x})["y"] for p in (plan, corrected))
    channel = 2 if kind == "matmul" else 1
    others = tuple(i for i in range(want.ndim) if i != channel)
    assert np.abs((want - before).mean(others)).max() > 0.01
    np.testing.assert_allclose(after.mean(others), want.mean(others), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_mean_of_every_channel_is_that_of_equation_13(model_from_text, kind):
    net, plan, _ = three_bits(model_from_text, kind)
    view = GraphView(net)
    (layer,) = view.layers
    corrected = correct_means(correct_norm(plan, view), view)
    grid = corrected.layers[0].weight
    weight = layer.weight_array()
    given, rounded, had = (
        grid.granularity.rows(array)
        for array in (weight, weights.quantized(weight, plan.layers[0].weight), weights.quantized(weight, grid))
    )
    wanted = qmath.bias_correction(given, rounded)
    np.testing.assert_allclose(had, wanted.apply(rounded), rtol=1e-4, atol=1e-5)
    assert np.abs(grid.shift).max() > 1e-4


def test_measured_shifts_bring_the_logits_nearer(digits, digits_calibration, tmp_path):
    kl = {}
    for option in ("--bias-correction", "--correct-outputs"):
        out = tmp_path / "out.onnx"
        command = ["quantize", str(digits), "-o", str(out), "--data", str(digits_calibration), "--quiet", option]
        assert main([*command, "--weights", "2", "--rounding", "nearest", "--allocate-bits", "none"]) == 0
        kl[option] = qgraph.evaluate(out, digits_calibration, against=digits).kl
    assert kl["--correct-outputs"] < 0.9 * kl["--bias-correction"]


def test_measuring_needs_samples(digits, digits_calibration, tmp_path):
    statistics = tmp_path / "statistics.npz"
    qgraph.quantize(digits, digits_calibration, limit=16, calibration=statistics)
    with pytest.raises(UsageError, match="correct_outputs=True measures on samples: pass data"):
        qgraph.quantize(digits, calibration=statistics, correct_outputs=True)
    with pytest.raises(UsageError, match="learns its biases"):
        qgraph.quantize(digits, method="lsqplus", correct_outputs=True)


@pytest.mark.parametrize("kind", ["conv", "groups", "transposed", "gemm", "matmul"])
def test_every_channel_has_its_norm_back(model_from_text, kind):
    net, plan, _ = three_bits(model_from_text, kind)
    view = GraphView(net)
    (quant,) = correct_norm(plan, view).layers
    weight = view.layers[0].weight_array()
    rounded = weights.quantized(weight, quant.weight)
    over = tuple(i for i in range(weight.ndim) if i != quant.weight.granularity.axis)

    def spread(w):
        return np.sqrt(((w - w.mean(over, keepdims=True)) ** 2).sum(over))

    np.testing.assert_allclose(spread(rounded), spread(weight), rtol=1e-5)


def test_a_channel_of_one_value_keeps_its_scale(model_from_text):
    net, plan, _ = three_bits(model_from_text, "gemm")
    (layer,) = GraphView(net).layers
    constant = dataclasses.replace(plan.layers[0].weight, scale=(100.0,) * 5)  # rounds everything to zero
    flat = dataclasses.replace(plan, layers=(dataclasses.replace(plan.layers[0], weight=constant),))
    (quant,) = correct_norm(flat, GraphView(net)).layers
    assert quant.weight.gain == (1.0,) * 5
    assert layer.name == quant.name


def test_every_layer_is_a_step_of_progress(model_from_text):
    net, plan, x = three_bits(model_from_text, "conv")
    told: list[tuple[int, str]] = []

    class Counted:
        def stage(self, title, total=None, *, pieces=1):
            told.append((total, title))
            return nullcontext(lambda units, note="": told.append((units, note)))

    few, all_ = (
        correct_outputs(plan, GraphView(net), open_data(np.stack([x[0], x[0] * 3, x[1]]), net), samples=n, progress=p)
        for n, p in ((1, Counted()), (64, Counted()))
    )
    (layer,) = GraphView(net).layers
    assert told == [(1, "correcting outputs"), (1, layer.name)] * 2
    assert few.layers[0].bias_shift != all_.layers[0].bias_shift, "only the first samples count"
