"""The verdict on a file: each figure against one worked out by other means, and nothing that goes wrong is hidden."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.assess.float_constants import float_constant_bytes
from qgraph.assess.metric import Collected, Metric, Outputs, compare_by, load_metric
from qgraph.assess.output_quality import paired_margin
from qgraph.assess.verdict import measure
from qgraph.errors import QualityWarning
from qgraph.onnxfile.load import load
from qgraph.onnxfile.write import serialised
from qgraph.running.outputs import as_array
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data
from qgraph.samples.split import hold_out, spread

CLASSES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { y = MatMul(x, w) }
"""
SEQUENCE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5, 4] x) => (float[N, 5, 3] y) <float[4, 3] w> { y = MatMul(x, w) }
"""


@pytest.fixture
def weights():
    return np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def judged(before, after, data, **options):
    reference = load(before)
    samples = None if data is None else open_data(data, reference)
    return measure(reference, load(after).ir_model, samples, **options)


def test_every_figure_of_scores(model_from_text, weights):
    rng = np.random.default_rng(1)
    off = weights + rng.normal(size=weights.shape).astype(np.float32) / 3
    x = rng.normal(size=(40, 4)).astype(np.float32)
    labels = (x @ weights).argmax(axis=1)
    labels[:4] = (labels[:4] + 1) % 3
    found = judged(
        model_from_text(CLASSES, w=weights), model_from_text(CLASSES, w=off), {"x": x, "labels": labels}, threads=2
    )
    want, have = x @ weights, x @ off
    (output,) = found.outputs
    assert output.name == "y"
    assert not output.problem
    assert not output.exact
    assert output.sqnr_db == pytest.approx(10 * np.log10((want**2).sum() / ((have - want) ** 2).sum()), abs=1e-3)
    same = want.argmax(axis=1) == have.argmax(axis=1)
    assert 0.5 < output.same_argmax < 1
    assert output.same_argmax == pytest.approx(same.mean())
    assert found.samples == found.accuracy.samples == 40
    assert found.accuracy.before == 90.0
    assert found.accuracy.after == pytest.approx(100 * (have.argmax(axis=1) == labels).mean())
    assert found.float_nbytes == found.nbytes
    assert found.float_constant_bytes == 48
    assert (found.layers, found.integer_layers) == (1, 0)
    assert found.latency > 0
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["outputs"][0]["name"] == "y"
    quality, size, speed = found.lines()
    assert "accuracy 90 ->" in quality
    assert "dB" in quality
    assert "40 samples held out from calibration" in quality
    assert "100% of float; 48 bytes" in size
    assert "0 of 1 layers on integers" in speed


def test_the_same_model_is_exact(model_from_text, weights):
    model = model_from_text(CLASSES, w=weights)
    found = judged(model, model, np.ones((3, 4), np.float32))
    assert found.outputs[0].exact
    assert found.outputs[0].sqnr_db is None
    assert found.outputs[0].same_argmax == 1.0
    assert found.accuracy is None


@pytest.mark.parametrize("basis", ["distilled", "noise"])
def test_invented_samples_have_no_class(basis, model_from_text, weights):
    model = model_from_text(CLASSES, w=weights)
    found = judged(model, model, np.ones((3, 4), np.float32), basis=basis)
    assert found.outputs[0].same_argmax is None
    assert "class" not in str(found)


def test_sequences_of_scores_have_a_class_each(model_from_text, weights):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 5, 4)).astype(np.float32)
    off = weights[:, [1, 0, 2]]
    labels = (x @ weights).argmax(axis=-1)
    before, after = model_from_text(SEQUENCE, w=weights), model_from_text(SEQUENCE, w=off)
    found = judged(before, after, {"x": x, "labels": labels})
    same = labels == (x @ off).argmax(axis=-1)
    assert found.outputs[0].same_argmax == pytest.approx(same.mean())
    assert found.accuracy.before == 100
    assert found.accuracy.after == pytest.approx(100 * same.mean())


def test_features_that_no_layer_makes_are_no_scores(model_from_text):
    text = SEQUENCE.replace("y = MatMul(x, w)", "h = MatMul(x, w) y = Tanh(h)")
    model = model_from_text(text, w=np.eye(4, 3, dtype=np.float32))
    assert judged(model, model, np.ones((2, 5, 4), np.float32)).outputs[0].same_argmax is None


def test_nan_is_said(model_from_text, weights):
    broken = weights.copy()
    broken[0, 0] = np.nan
    x = np.ones((10, 4), np.float32)
    found = judged(model_from_text(CLASSES, w=weights), model_from_text(CLASSES, w=broken), x)
    assert found.outputs[0].sqnr_db is None
    assert "NaN or infinite values in 10 of 10 runs" in found.outputs[0].problem
    assert found.worst is found.outputs[0]
    assert found.outputs[0].problem in found.lines()[0]


def test_infinity_where_the_float_model_has_it_too_is_none_of_the_files_doing(model_from_text, weights):
    text = CLASSES.replace("y = MatMul(x, w)", "h = MatMul(x, w) y = Concat<axis = 1>(h, m)").replace(
        "w>", "w, float[1, 1] m>"
    )
    text = text.replace("float[N, 3]", "float[N, 4]").replace("float[N, 4] x", "float[1, 4] x")
    model = model_from_text(text.replace("[N, 4]", "[1, 4]"), w=weights, m=np.full((1, 1), -np.inf, np.float32))
    found = judged(model, model, np.ones((2, 4), np.float32))
    assert found.outputs[0].exact
    assert "float model itself" in found.outputs[0].problem


def test_a_file_that_fails_is_said(model_from_text, weights):
    text = CLASSES.replace("y = MatMul(x, w)", "s = Reshape(x, k) y = MatMul(s, w)").replace("w>", "w, int64[2] k>")
    failing = model_from_text(text, w=weights, k=np.array([7, 4]))
    found = judged(model_from_text(CLASSES, w=weights), failing, np.ones((3, 4), np.float32))
    assert found.notes[0].startswith("the file fails in 3 runs")
    assert found.notes[0] in found.lines()[0]


def test_another_shape_is_said(model_from_text, weights):
    other = model_from_text(
        CLASSES.replace("float[N, 3] y", "float[N, 2] y").replace("[4, 3]", "[4, 2]"), w=weights[:, :2]
    )
    found = judged(model_from_text(CLASSES, w=weights), other, np.ones((3, 4), np.float32))
    assert found.outputs[0].problem == "the shape is 1 x 2, the float model's 1 x 3"


def test_whole_numbers_are_counted(model_from_text, weights):
    text = CLASSES.replace("float[N, 3] y", "int64[N] y").replace(
        "y = MatMul(x, w)", "h = MatMul(x, w) y = ArgMax<axis = 1, keepdims = 0>(h)"
    )
    x = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
    off = weights[:, [1, 0, 2]]
    found = judged(model_from_text(text, w=weights), model_from_text(text, w=off), x)
    same = (x @ weights).argmax(axis=1) == (x @ off).argmax(axis=1)
    assert found.outputs[0].same_values == pytest.approx(same.mean())
    assert found.outputs[0].sqnr_db is None


def test_without_samples_noise_is_run_and_it_says_so(model_from_text, weights):
    model = model_from_text(CLASSES, w=weights)
    found = judged(model, model_from_text(CLASSES, w=weights * 1.1), None)
    assert found.basis == "noise"
    assert found.samples == 8
    assert found.outputs[0].sqnr_db == pytest.approx(20, abs=0.1)
    assert "random noise" in found.lines()[0]


def test_constants_in_float_are_counted_wherever_they_are(model_from_text, weights):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4] x, bool c) => (float[N, 3] y) <float[4, 3] w, float s, int8 z, int8[4, 3] q> {
      d = DequantizeLinear(q, s, z)
      h = MatMul(x, d)
      y = If (c) <
        then_branch = a () => (float[N, 3] t) <float[4, 3] v = {1,2,3,4,5,6,7,8,9,10,11,12}> { t = MatMul(x, v) },
        else_branch = b () => (float[N, 3] e) { e = Identity(h) }
      >
    }
    """
    model = ir.from_onnx_text(text)
    assert float_constant_bytes(model) == 0 + 48
    both = model_from_text(CLASSES, w=weights)
    assert float_constant_bytes(ir.from_proto(both)) == 48


# samples that take no part


@pytest.mark.parametrize(("count", "held"), {"some": (40, 5), "many": (4000, 64), "eight": (8, 1)}.values())
def test_an_eighth_is_kept_apart_and_spread_over_the_data(model_from_text, weights, count, held):
    net = load(model_from_text(CLASSES, w=weights))
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    apart = hold_out(open_data({"x": x, "labels": np.arange(count)}, net))
    assert apart.apart
    assert apart.held_out.count == held
    assert apart.used.count == count - held
    numbers = [np.concatenate([b.labels for b in part.batches(7)]) for part in (apart.used, apart.held_out)]
    assert sorted(np.concatenate(numbers)) == list(range(count))
    for part, places in zip((apart.used, apart.held_out), numbers, strict=True):
        assert np.array_equal(np.concatenate([b.feeds["x"] for b in part.batches(7)]), x[places])
        assert np.array_equal(part.take([0, part.count - 1]).labels, places[[0, -1]])
    stretch = count // held
    assert all(i * stretch <= p < (i + 1) * stretch + held for i, p in enumerate(numbers[1]))
    assert hold_out(open_data({"x": x}, net)).held_out.rows == apart.held_out.rows


def test_data_with_a_period_are_met_at_every_phase():
    assert len({p % 10 for p in spread(640, 64)}) > 5


def test_few_samples_are_on_both_sides(model_from_text, weights):
    net = load(model_from_text(CLASSES, w=weights))
    apart = hold_out(open_data(np.ones((7, 4), np.float32), net))
    assert not apart.apart
    assert apart.held_out.count == apart.used.count == 7


def test_given_batches_stay_whole(model_from_text, weights):
    net = load(model_from_text(CLASSES, w=weights))
    batches = [np.full((4, 4), i, np.float32) for i in range(16)]
    apart = hold_out(open_data(iter(batches), net))
    sizes = [len(b.feeds["x"]) for b in apart.held_out.batches(4)]
    assert sizes == [4, 4]
    assert apart.used.count == 56


def test_a_choice_of_a_choice(model_from_text, weights):
    net = load(model_from_text(CLASSES, w=weights))
    data = open_data({"x": np.zeros((10, 4), np.float32), "labels": np.arange(10)}, net)
    few = data.choose([1, 3, 5, 7, 9]).choose([0, 2, 4])
    assert [list(b.labels) for b in few.batches(2)] == [[1, 5], [9]]
    assert few.count == 3


# the whole job


def test_quantize_measures_the_bytes_that_it_writes(digits, digits_calibration, tmp_path):
    result = qgraph.quantize(digits, digits_calibration, weights=4, activations=4)
    result.save(tmp_path / "small.onnx")
    data = (tmp_path / "small.onnx").read_bytes()
    assert data == serialised(result.model)
    quality = result.quality
    assert quality.nbytes == len(data) == result.nbytes
    assert quality.float_nbytes == digits.stat().st_size
    assert quality.basis == "held-out"
    assert quality.samples == 64
    held = hold_out(open_data(digits_calibration, load(digits))).held_out
    before, after = Session(digits), Session(tmp_path / "small.onnx")
    want, have = (np.concatenate([s.run_list(b.feeds)[0] for b in held.batches(1)]) for s in (before, after))
    decibel = 10 * np.log10((want**2).sum() / ((have - want) ** 2).sum())
    assert quality.outputs[0].sqnr_db == pytest.approx(decibel, abs=0.05)
    assert quality.accuracy.samples == 64
    assert quality.integer_layers == quality.layers == 7
    assert result.observed.count == open_data(digits_calibration, load(digits)).count - 64
    assert result.seconds["measure"] <= result.seconds["total"]
    assert result.to_dict()["quality"] == quality.to_dict()


def test_the_plan_is_the_same_without_the_measurement(digits, digits_calibration):
    measured = qgraph.quantize(digits, digits_calibration, limit=40)
    plain = qgraph.quantize(digits, digits_calibration, limit=40, measure=False)
    assert plain.plan == measured.plan
    assert plain.quality is None
    assert plain.to_dict()["quality"] is None
    assert "measure" not in plain.seconds


def test_few_and_no_samples_are_said(digits, digits_calibration):
    few = qgraph.quantize(digits, digits_calibration, limit=5)
    assert few.quality.basis == "calibration"
    assert "too few" in few.quality.lines()[0]
    none = qgraph.quantize(digits, weights=8, activations=None, method="minmax")
    assert none.quality.basis == "noise"
    assert none.quality.samples == 8


# the user's metric


def score(outputs, labels):
    return float((outputs["y"].argmax(axis=1) == labels).mean())


def test_a_metric_gets_all_outputs_and_labels(model_from_text, weights):
    x = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    labels = (x @ weights).argmax(axis=1)
    before, after = model_from_text(CLASSES, w=weights), model_from_text(CLASSES, w=weights[:, [1, 0, 2]])
    found = judged(before, after, {"x": x, "labels": labels}, metric=load_metric(score))
    assert found.metric.before == 1.0
    assert found.metric.after == pytest.approx(found.accuracy.after / 100)
    assert found.metric.samples == 40
    assert found.metric.margin == pytest.approx(found.accuracy.margin / 100, rel=0.5)
    assert "score 1 ->" in found.lines()[0]


def test_outputs_by_name_and_by_position():
    outputs = Outputs({"a": 1, "b": 2})
    assert (outputs["b"], outputs[0], outputs[-1]) == (2, 1, 2)
    assert list(outputs) == ["a", "b"]
    assert len(outputs) == 2


def test_outputs_of_different_shapes_are_lists():
    runs = [[np.zeros((1, n))] for n in (2, 3)]
    assert [a.shape for a in Collected(names=["y"], runs=runs, labels=None).outputs()[0]] == [(1, 2), (1, 3)]


def test_a_metric_by_name(tmp_path, monkeypatch):
    (tmp_path / "mytask_for_test.py").write_text(
        "def best(outputs, labels):\n    return outputs[0].max()\nNUMBER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    metric = load_metric("mytask_for_test:best")
    one = Collected(names=["y"], runs=[[np.array([1.0, 2.0])]], labels=None)
    found = compare_by(metric, one, one)
    assert (found.name, found.before, found.samples, found.margin) == ("mytask_for_test:best", 2.0, 1, None)


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "no colon": ("math", "is not MODULE:FUNCTION"),
        "no module": ("no_such_module_here:f", "cannot be imported"),
        "no function": ("math:no_such", "cannot be imported"),
        "no callable": ("math:pi", "not a function of (outputs, labels)"),
    }.values(),
)
def test_metrics_that_are_none(name, words):
    with pytest.raises(qgraph.UsageError) as caught:
        load_metric(name)
    assert words in str(caught.value)


def test_a_metric_that_fails_is_named():
    metric = Metric(name="m:f", function=lambda outputs, labels: outputs["nothing"])
    with pytest.raises(qgraph.DataError, match="m:f fails on these data"):
        metric(Outputs({"y": 1}), None)


def test_the_margin_covers_the_truth():
    """Of many samples of 64 with known rates of disagreement, 95 in a hundred margins hold the true difference."""
    rng = np.random.default_rng(0)
    draws = rng.choice([1, -1, 0], p=[0.06, 0.02, 0.92], size=(4000, 64))
    margins = np.array([paired_margin(64, d.sum(), (d**2).sum()) for d in draws])
    assert 0.93 < (np.abs(draws.mean(axis=1) - 0.04) <= margins).mean() < 0.99


def test_no_disagreement_on_few_samples_is_no_certainty():
    assert 0.02 < paired_margin(64, 0, 0) < 0.05 < paired_margin(8, 0, 0)


def test_onnx_is_what_was_judged(model_from_text, weights):
    """The reference may be a ModelProto: its size is that of its serialisation."""
    model = model_from_text(CLASSES, w=weights)
    assert isinstance(model, onnx.ModelProto)
    assert judged(model, model, np.ones((1, 4), np.float32)).float_nbytes == model.ByteSize()


@pytest.mark.parametrize("kind", ["map", "sequence"])
def test_outputs_in_containers_are_judged(kind):
    """The probabilities of a ZipMap, as scikit-learn's converter writes them, and the tensors of a sequence."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(16, 8)), "v": rng.normal(size=(8, 4))}
    of_floats = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    if kind == "map":
        last = helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_strings=["b", "a", "d", "c"])
        inner = helper.make_map_type_proto(TensorProto.STRING, of_floats)
    else:
        last, inner = helper.make_node("SplitToSequence", ["p"], ["y"], axis=1, keepdims=0), of_floats
    layers = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["s"])]
    graph = helper.make_graph(
        [*layers, helper.make_node("Softmax", ["s"], ["p"], axis=1), last],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_value_info("y", helper.make_sequence_type_proto(inner))],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    x = rng.normal(size=(64, 16)).astype(np.float32)
    good = qgraph.quantize(model, x, activations=8).quality.worst
    assert good.sqnr_db > 25
    assert good.same_argmax == (None if kind == "sequence" else 1.0)
    with pytest.warns(QualityWarning, match="output 'y' is at .* dB"):
        qgraph.quantize(model, x, activations=2, weights=2, edge_bits=2)


def test_containers_as_arrays():
    assert as_array({"b": 2.0, "a": 1.0}).tolist() == [1.0, 2.0]
    assert as_array([{1: 0.5, 0: 0.5}, {1: 1.0, 0: 0.0}]).tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert as_array([np.zeros((2, 3)), np.ones((2, 3))]).shape == (2, 2, 3)
    assert as_array([np.zeros(2), np.ones(3)]).tolist() == [0, 0, 1, 1, 1]
    assert as_array([]).size == as_array(None).size == 0
