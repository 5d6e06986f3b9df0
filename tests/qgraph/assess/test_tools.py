"""evaluate, compare and inspect --fused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model

RNG = np.random.default_rng(6)


def as_model(result) -> Model:
    return Model(ir_model=result.model, source="quantized", nbytes=result.nbytes)


@pytest.fixture(scope="module")
def quantized(digits, digits_calibration):
    return as_model(qgraph.quantize(digits, digits_calibration))


def test_a_model_equals_itself(digits, digits_test):
    quality = qgraph.evaluate(digits, digits_test, against=digits)
    assert quality.count == 600
    assert quality.top1 == pytest.approx(99.6667, abs=1e-3)
    assert quality.kl == 0
    assert quality.sqnr_db is None  # no noise at all
    assert quality.outputs == {"logits": None}


def test_measures_are_those_of_the_definitions(digits, digits_test, quantized):
    quality = qgraph.evaluate(quantized, digits_test, against=digits)
    from scipy.special import log_softmax

    from qgraph.running.sessions import Session
    from qgraph.samples.dataset import open_data

    (batch,) = open_data(digits_test, quantized).batches(600)
    p, q = (Session(m.ir_model).run(batch.feeds)["logits"].astype(np.float64) for m in (load(digits), quantized))
    log_p, log_q = log_softmax(p, axis=1), log_softmax(q, axis=1)
    assert quality.kl == pytest.approx(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)), rel=1e-3)
    assert quality.sqnr_db == pytest.approx(10 * np.log10(np.sum(p**2) / np.sum((p - q) ** 2)), abs=0.05)
    assert quality.top1 == pytest.approx(100 * np.mean(q.argmax(1) == batch.labels), abs=0.2)


def test_outputs_of_any_rank_get_a_ratio():
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,2,2] x) => (float[N,2,2] y, int64[3] s) { y = {op}(x)
      s = Shape(x) }"""
    exact, rounded = (load(onnx.parser.parse_model(text.replace("{op}", op))) for op in ("Identity", "Round"))
    x = RNG.random((6, 2, 2), np.float32) * 100
    quality = qgraph.evaluate(rounded, x, against=exact)
    assert quality.top1 is None
    assert quality.kl is None
    assert list(quality.outputs) == ["y"]
    assert quality.sqnr_db == pytest.approx(10 * np.log10(np.sum(x**2) / np.sum((x - np.rint(x)) ** 2)), rel=1e-3)


def test_comparison_follows_the_layers(digits, digits_calibration, digits_test, quantized):
    low = as_model(qgraph.quantize(digits, digits_calibration, weights=4, activations=4))
    rows = qgraph.compare(digits, [quantized, low, load(digits)], digits_test)
    assert rows[0].layer == "stem/conv"
    assert len(rows) == 7
    assert all(row.sqnr_db[0] > row.sqnr_db[1] > 5 for row in rows[1:])
    assert all(row.sqnr_db[2] is None or row.sqnr_db[2] > 90 for row in rows)  # the float model against itself


def test_comparison_says_where_the_prior_fails(model_from_text):
    """Laplacian data follow a prior; values near +-1 alone do not, and have no clip worth 4 bits but the exact one."""
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x, float[N,4] z, float[4,4] u, float[4,4] v) => (float[N,4] y) {
      a = MatMul(x, u)
      b = MatMul(z, v)
      y = Add(a, b)
    }"""
    u, v = (RNG.standard_normal((4, 4)).astype(np.float32) for _ in range(2))
    net = model_from_text(text, u=u, v=v)
    two = RNG.choice([-1.0, 1.0], (4000, 4)) + 0.001 * RNG.standard_normal((4000, 4))
    data = {"x": RNG.laplace(size=(4000, 4)).astype(np.float32), "z": two.astype(np.float32)}
    four = as_model(qgraph.quantize(net, data, activations=4, edge_bits=4, allocate_bits="none"))
    rows = qgraph.compare(net, [four, load(net)], data, limit=4000)
    assert [row.prior_rejected for row in rows] == [(False, None), (True, None)]


def test_every_layer_of_an_export_is_integer(quantized):
    found = inspect_fused(quantized)
    assert all(layer.integer for layer in found.layers), found
    assert {layer.kernel for layer in found.layers} == {"QLinearConv", "QGemm"}


def test_a_float_model_has_reasons_and_no_warning(digits):
    found = inspect_fused(load(digits))
    assert not any(layer.integer for layer in found.layers)
    assert all(layer.why == "its weight is floating point" for layer in found.layers)
    assert found.warnings == ()


def test_what_blocks_fusion_is_named(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[1,3,8,8] x, int8[4,3,3,3] w, float s, int8 z, float t, uint8 u) => (float[1,4,6,6] y) {
      q = QuantizeLinear(x, t, u)
      d = DequantizeLinear(q, t, u)
      k = DequantizeLinear(w, s, z)
      [open] c = Conv(d, k)
      y = Sigmoid(c)
    }"""
    model = model_from_text(
        text,
        w=RNG.integers(-127, 127, (4, 3, 3, 3)).astype(np.int8),
        s=np.float32(0.01).reshape(()),
        z=np.int8(0).reshape(()),
        t=np.float32(0.02).reshape(()),
        u=np.uint8(128).reshape(()),
    )
    (layer,) = inspect_fused(load(model)).layers
    assert not layer.integer
    assert layer.why == "its result goes to Sigmoid before it is quantized"
    assert "slower than float" in inspect_fused(load(model)).warnings[0]
