"""quantize and apply, end to end on the packaged network."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.evaluate import evaluate
from qgraph.errors import ModelError
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan


def as_model(result) -> Model:
    return Model(ir_model=result.model, source="quantized", nbytes=result.nbytes)


@pytest.fixture(scope="module")
def w4a8(digits, digits_calibration):
    return qgraph.quantize(digits, digits_calibration, weights=4, activations=8)


@pytest.mark.parametrize("method", ["minmax", "aciq"])
def test_eight_bits_keep_accuracy(digits, digits_calibration, digits_test, method):
    result = qgraph.quantize(digits, digits_calibration, method=method)
    quality = evaluate(as_model(result), digits_test, against=digits)
    assert quality.top1 >= evaluate(digits, digits_test).top1 - 0.4
    assert quality.sqnr_db > 35


def test_four_bits_are_better_clipped_and_corrected(digits, digits_calibration, digits_test):
    scores = {}
    for method in ("minmax", "aciq"):
        result = qgraph.quantize(digits, digits_calibration, method=method, weights=4, activations=4)
        scores[method] = evaluate(as_model(result), digits_test, against=digits).sqnr_db
    assert scores["aciq"] > scores["minmax"] + 3


def test_the_same_input_gives_the_same_bytes(digits, digits_calibration, w4a8, tmp_path):
    digests = set()
    for threads in (1, 2, 2):
        again = qgraph.quantize(digits, digits_calibration, weights=4, activations=8, threads=threads)
        again.save(tmp_path / "m.onnx")
        digests.add(hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest())
        assert again.plan == w4a8.plan
    assert len(digests) == 1


@pytest.mark.parametrize("format", ["qdq", "float"])
def test_apply_gives_the_bytes_of_quantize(digits, digits_calibration, tmp_path, format):
    result = qgraph.quantize(digits, digits_calibration, weights=3, activations=6, format=format)
    result.save(tmp_path / "quantized.onnx")
    plan = QuantPlan.from_json(result.plan.to_json())
    applied = qgraph.apply(digits, plan, format=format)
    qgraph.save(applied, tmp_path / "applied.onnx")
    assert (tmp_path / "quantized.onnx").read_bytes() == (tmp_path / "applied.onnx").read_bytes()


def test_apply_hands_out_nothing_that_does_not_run(digits, digits_calibration, monkeypatch):
    plan = qgraph.quantize(digits, digits_calibration).plan
    monkeypatch.setattr("qgraph.jobs.apply.lower", lambda net, plan, *, format: _beyond_onnxruntime(net.ir_model))
    with pytest.raises(ModelError, match="the quantized model does not run"):
        qgraph.apply(digits, plan)


def _beyond_onnxruntime(model: ir.Model) -> ir.Model:
    clone = model.clone()
    next(iter(clone.graph)).op_type = "NoSuchOperator"
    return clone


def test_the_interface_is_that_of_the_model(digits, w4a8):
    before, after = onnx.load(digits), ir.to_proto(w4a8.model)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.opset_import) == list(before.opset_import)


def test_every_way_to_pass_model_and_data(digits, digits_calibration):
    images = np.load(digits_calibration)["images"][:32]
    floats = (images / np.float32(255)).transpose(0, 3, 1, 2)
    models = [digits, str(digits), onnx.load(digits), ir.load(digits)]
    sources = [digits_calibration, images, {"input": images}, floats, iter([images[:20], images[20:]])]
    options = {"weights": 4, "allocate_bits": "none", "rounding": "nearest", "guard": "off", "measure": False}
    first = qgraph.quantize(digits, images, **options).plan
    for model in models[1:]:
        assert qgraph.quantize(model, images, **options).plan == first
    for source in sources:
        plan = qgraph.quantize(digits, source, limit=32, **options).plan
        assert [layer.weight for layer in plan.layers] == [layer.weight for layer in first.layers]
        for a, b in zip(plan.activations, first.activations, strict=True):
            np.testing.assert_allclose(a.scale, b.scale, rtol=1e-3)


def test_bits_and_edges(w4a8):
    bits = {layer.name: layer.weight_bits for layer in w4a8.layers}
    assert bits["stem/conv"] == bits["classifier"] == 8
    assert {b for name, b in bits.items() if name not in ("stem/conv", "classifier")} == {4}
    assert all(layer.activation_bits == 8 for layer in w4a8.layers)


def test_overrides(digits, digits_calibration):
    result = qgraph.quantize(
        digits, digits_calibration, weights=5, activations=None, edge_bits=6, per_channel=False, keep=("residual/*",)
    )
    assert {layer.weight_bits for layer in result.layers} == {5, 6}
    assert result.plan.activations == ()
    assert all(len(layer.weight.scale) == 1 for layer in result.plan.layers)
    assert {k.name for k in result.plan.kept_float} >= {"residual/first/conv", "residual/second/conv"}
    reduced = qgraph.quantize(digits, digits_calibration, reduce_range=True)
    assert {layer.weight_bits for layer in reduced.layers} == {7}


def test_asymmetric_weights_are_no_worse_than_symmetric_ones_at_low_bits(digits, digits_calibration, digits_test):
    scores = {}
    for symmetric in (True, False):
        options = {"method": "minmax", "weights": 3, "activations": None, "symmetric": symmetric}
        scores[symmetric] = evaluate(
            as_model(qgraph.quantize(digits, digits_calibration, **options)), digits_test, against=digits
        ).sqnr_db
    assert scores[False] > scores[True]


def test_predicted_errors_are_close_to_measured_ones(digits, digits_calibration):
    for bits in ({"weights": 8}, {"weights": 4}, {"weights": 4, "activations": 4}):
        result = qgraph.quantize(digits, digits_calibration, rounding="nearest", **bits)
        gaps = [abs(layer.predicted_sqnr_db - layer.simulated_sqnr_db) for layer in result.layers]
        assert np.median(gaps) < 1.0
        assert max(gaps) < 4.0


def test_weight_only_needs_no_data(digits, digits_test):
    result = qgraph.quantize(digits, method="aciq", weights=8, activations=None)
    assert result.data == "none"
    assert all(layer.measured_sqnr_db is None for layer in result.layers)
    assert evaluate(as_model(result), digits_test, against=digits).sqnr_db > 35


def test_calibration_files_replace_data(digits, digits_calibration, tmp_path):
    path = tmp_path / "statistics.npz"
    first = qgraph.quantize(digits, digits_calibration, weights=4, calibration=path)
    again = qgraph.quantize(digits, weights=4, calibration=path)
    assert again.plan == first.plan


def test_the_model_that_is_given_stays_as_it_was(digits, digits_calibration):
    proto = onnx.load(digits)
    before = proto.SerializeToString(deterministic=True)
    qgraph.quantize(proto, digits_calibration, weights=4)
    assert proto.SerializeToString(deterministic=True) == before


def test_json_follows_the_contract(w4a8):
    content = w4a8.to_dict(output="out.onnx", nbytes=5)
    assert set(content) == {
        "output",
        "bytes",
        "float_bytes",
        "weight_bytes",
        "data",
        "seconds",
        "layers",
        "kept_float",
        "max_drop",
        "others",
        "guard",
        "quality",
    }
    assert content["data"] == "calibration"
    assert content["seconds"]["total"] > 0
    assert set(content["layers"][0]) == {
        "name",
        "op",
        "weight_bits",
        "activation_bits",
        "predicted_sqnr_db",
        "simulated_sqnr_db",
        "measured_sqnr_db",
        "runs",
        "prior_rejected",
    }
    shapes = {layer.name: layer.weight_array().shape for layer in qgraph_layers(w4a8)}
    bits = {layer.name: layer.weight_bits for layer in w4a8.layers}
    assert content["weight_bytes"] == sum(
        np.prod(shapes[name]) if bits[name] == 8 else bits[name] * -(-int(np.prod(shapes[name])) // 8) for name in bits
    )


def qgraph_layers(result):
    from qgraph.graph.sites import GraphView

    return GraphView(result.net).layers
