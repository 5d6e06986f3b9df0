"""Layers whose integer kernels are slower than their float kernels stay in floats, and weights are stored once."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.cost import why_slower
from qgraph.running.sessions import Session

HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('


def sqnr(model, result, feeds):
    want, have = (np.asarray(Session(m).run_list(feeds)[0], np.float64) for m in (load(model).ir_model, result.model))
    return 10 * np.log10((want**2).sum() / ((want - have) ** 2).sum())


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("weight", "group", "size", "slow"),
    [
        ((64, 16, 3, 3), 4, 12, True),
        ((64, 32, 3, 3), 2, 12, False),
        ((64, 1, 3, 3), 64, 12, False),
        ((32, 1, 3, 3), 16, 12, True),
        ((8, 8, 9, 9), 1, 100, True),
        ((8, 8, 9, 9), 1, 12, False),
        ((8, 64, 1, 1), 1, 300, False),
        ((64, 8, 9, 9), 1, 100, False),
    ],
)
def test_the_rule(model_from_text, weight, group, size, slow):
    inputs = weight[1] * group
    text = (
        f"float[N,{inputs},{size},{size}] x, float[{','.join(map(str, weight))}] w) =>"
        f" (float[N,{weight[0]},h,v] y) {{ y = Conv<group={group}>(x, w) }}"
    )
    net = normalise(load(model_from_text(HEAD + text, w=normal(*weight))))
    assert bool(why_slower(GraphView(net).layers[0])) == slow


def test_a_grouped_convolution_between_integers_runs_in_floats(model_from_text):
    text = (
        "float[N,8,10,10] x, float[32,8,1,1] a, float[32,8,3,3] g, float[32] b, float[8,32,1,1] c) =>"
        " (float[N,8,10,10] y) { p = Conv(x, a) r = Relu(p) q = Conv<group=4, pads=[1,1,1,1]>(r, g, b) s = Relu(q)"
        " y = Conv(s, c) }"
    )
    weights = {"a": normal(32, 8, 1, 1), "g": normal(32, 8, 3, 3), "c": normal(8, 32, 1, 1)}
    model = model_from_text(HEAD + text, **weights, b=np.linspace(-1, 1, 32, dtype=np.float32))
    x = np.random.default_rng(0).normal(size=(16, 8, 10, 10)).astype(np.float32)
    for options in ({}, {"weights": 4, "activations": 4}):
        result = qgraph.quantize(model, x, **options)
        (kept,) = [entry for entry in result.plan.kept_float if "slower" in entry.why]
        assert kept.name == "Conv_q"
        kernels = {layer.op + str(layer.integer) for layer in inspect_fused(load(ir.to_proto(result.model))).layers}
        assert kernels == {"ConvTrue", "ConvFalse"}
        held = [t for t in ir.to_proto(result.model).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert all(np.prod(t.dims) <= 32 for t in held)  # scales and biases
        assert sqnr(model, result, {"x": x}) > (8 if options else 30)


def test_a_clip_at_whose_bound_the_codes_end_is_merged(model_from_text):
    text = (
        "float[N,8,10,10] x, float[16,8,3,3] a, float low, float high, int64[8] p, float[8,16,3,3] c) =>"
        " (float[N,8,8,8] y) { p1 = Conv(x, a) r = Clip(p1, low, high) z = Pad(r, p) y = Conv(z, c) }"
    )
    ends = {
        "low": np.float32(0).reshape(()),
        "high": np.float32(1).reshape(()),
        "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    model = model_from_text(HEAD + text, a=normal(16, 8, 3, 3), c=normal(8, 16, 3, 3), **ends)
    x = np.random.default_rng(0).normal(size=(16, 8, 10, 10)).astype(np.float32)
    result = qgraph.quantize(model, x, method="minmax", activations=4, weights=8)
    fused = inspect_fused(load(ir.to_proto(result.model))).layers
    assert all(layer.integer for layer in fused), fused
    assert sqnr(model, result, {"x": x}) > 15


SHARED = (
    "float[N,16] x, float[16,16] w, float[16] b) => (float[N,16] y) {"
    " p = Gemm(x, w, b) r = Relu(p) q = Gemm(r, w, b) s = Relu(q) t = Gemm(s, w) u = Relu(t) v = MatMul(u, w)"
    " y = Relu(v) }"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": 4},
        {"weights": 3, "edge_bits": 8},
        {"activations": None},
        {"method": "minmax"},
        {"symmetric": False},
    ],
)
def test_a_weight_that_several_layers_read_is_stored_once(model_from_text, options):
    model = model_from_text(HEAD + SHARED, w=normal(16, 16), b=np.linspace(-1, 1, 16, dtype=np.float32))
    x = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    result = qgraph.quantize(model, x, **options)
    assert len({quant.weight for quant in result.plan.layers}) == 1
    held = [t for t in ir.to_proto(result.model).graph.initializer if np.prod(t.dims) >= 64]
    assert len(held) == 1
    assert sqnr(model, result, {"x": x}) > 10
