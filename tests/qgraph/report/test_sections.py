"""What the sections of a report say: the headline, marks apart, named rows, chosen ranges, other bits."""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qgraph
import qmath
from qgraph.assess.evaluate import Evaluation
from qgraph.plan.plan import ActivationQuant
from qgraph.report import render, report_of, report_on
from qgraph.report.charts import RADIUS, WIDTH, Axis, Point, Series, chart
from qgraph.report.headline import judged
from qgraph.report.ranges import operand_of, range_chart
from qgraph.report.rows import row_chart
from qgraph.version import __version__


@pytest.fixture(scope="module")
def result(digits, digits_calibration):
    return qgraph.quantize(digits, digits_calibration, weights=4, rounding="nearest", limit=128, keep=("reduce/*",))


@pytest.fixture(scope="module")
def report(result):
    return report_of(result, name="small.onnx", command="qgraph quantize digits.onnx --weights 4")


def test_the_headline_says_what_people_ask_first(report):
    page = render(report)
    [variant] = report.variants
    assert f"{report.nbytes / variant.nbytes:.1f}× smaller" in page
    assert f"{variant.quality.top1:.2f} %" in page
    assert "<code>qgraph quantize digits.onnx --weights 4</code>" in page
    assert f"qgraph {__version__}" in page
    assert report.made.date[:10] in page
    assert report.made.cpu in page.replace("&#x27;", "'")


def test_a_job_is_measured_on_samples_that_did_not_calibrate_it(report, result):
    assert (report.count, report.data) == (16, "digits_calibration.npz, held out from calibration")
    assert result.observed.count == 128 - 16


def test_data_that_made_a_plan_are_not_what_it_is_judged_on(digits, digits_calibration, digits_test, result):
    made = {"command": f"qgraph quantize digits.onnx --data {digits_calibration}"}
    plan = dataclasses.replace(result.plan, made=made)
    same, other = (report_on(digits, [plan], data, limit=80) for data in (digits_calibration, digits_test))
    assert (same.count, other.count) == (10, 80)
    assert same.data.endswith("held out from calibration")
    assert other.data == "digits_test.npz"


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [(99.0, 98.6, "good"), (99.0, 97.5, "fair"), (99.0, 90.0, "poor"), (99.0, 99.4, "good")],
)
def test_the_verdict_with_labels_is_the_accuracy(report, before, after, kind):
    [variant] = report.variants
    variant = dataclasses.replace(variant, quality=Evaluation(count=9, top1=after, sqnr_db=3.0))
    assert judged(dataclasses.replace(report, quality=Evaluation(count=9, top1=before)), variant)[0] == kind


@pytest.mark.parametrize(("decibels", "kind"), [(31.0, "good"), (22.0, "fair"), (9.0, "poor")])
def test_the_verdict_without_labels_is_the_worst_output(report, decibels, kind):
    [variant] = report.variants
    quality = Evaluation(count=9, sqnr_db=40.0, outputs={"a": 50.0, "b": decibels})
    unlabelled = dataclasses.replace(report, quality=None, verdict=None)
    assert judged(unlabelled, dataclasses.replace(variant, quality=quality))[0] == kind


def test_no_accuracy_is_above_100(report):
    top = Axis.over("top-1 accuracy, %", [99.3, 100.0], most=100.0)
    assert top.high == 100.0
    assert max(top.ticks()) == 100.0
    [drawing] = [c for c in charts(render(report)) if "top-1" in c.findtext("title")]
    numbers = [float(t.text) for t in drawing.iter("text") if re.fullmatch(r"[\d.]+", t.text or "")]
    assert 99 < max(numbers) <= 100


def charts(page):
    found = re.findall(r"<svg (?:(?!</svg>).)*?role=\"img\".*?</svg>", page, re.DOTALL)
    return [ElementTree.fromstring(text) for text in found]


@given(st.integers(2, 6), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=20)
def test_marks_at_one_place_stand_apart(count, place):
    axis = Axis(label="x", low=0.0, high=1.0)
    series = [Series(name=str(i), points=(Point(x=place, y=0.5),)) for i in range(count)]
    drawing = ElementTree.fromstring(chart("one place", series, axis, axis))
    across = sorted(float(c.get("cx")) for c in drawing.iter("circle"))
    assert min(np.diff(across)) >= 2 * RADIUS
    assert across[0] > 0
    assert across[-1] < WIDTH


@given(st.integers(1, 400), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_rows_are_named_and_marks_lie_beside_their_names(count, kinds):
    names = [f"model/block{i}/conv" for i in range(count)]
    axis = Axis(label="dB", low=0.0, high=40.0)
    series = [
        Series(name=str(k), points=tuple(Point(x=10.0 + i % 20, y=i) for i in range(count))) for k in range(kinds)
    ]
    drawing = ElementTree.fromstring(row_chart("rows", names, series, axis))
    height = float(drawing.get("viewBox").split()[3])
    marks = [(float(c.get("cx")), float(c.get("cy"))) for c in drawing.iter("circle")]
    assert len(marks) == len(set(marks)) == count * kinds
    assert all(60 < x < WIDTH and 0 < y < height for x, y in marks)
    labels = [t for t in drawing.iter("text") if t.find("title") is not None]
    assert labels[0].findtext("title") == names[0]
    assert len(labels) == count or count > 60
    assert len({t.find("title").tail for t in labels}) == len(labels)
    assert all(float(t.get("x")) > 6 * len(t.find("title").tail) for t in labels)
    at = [float(t.get("y")) for t in labels]
    assert all(b - a >= 13 for a, b in itertools.pairwise(at))


def test_every_layer_says_whether_it_runs_on_integers(report):
    [variant] = report.variants
    runs = {row.name: row.integer for row in variant.layers}
    assert [name for name, integer in runs.items() if not integer] == ["reduce/conv"]
    page = render(report)
    assert "runs on" in page
    assert "weights, run on integers" in page
    [drawing] = [c for c in charts(page) if c.findtext("title").startswith("Bits of")]
    assert {"reduce/conv", "classifier", "float"} <= {"".join(t.itertext()) for t in drawing.iter("text")} | {
        t.text for t in drawing.iter("title")
    }


def test_a_histogram_keeps_every_value_and_knows_what_is_clipped():
    x = np.abs(np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    seen = qmath.Statistics.of(x)
    grid = ActivationQuant(tensor="x", bits=8, scale=2.0 / 255)
    found = operand_of("layer", grid, seen)
    assert found.counts.sum() == x.size
    assert found.lost == pytest.approx(float((x > 2).mean()), abs=0.002)
    assert found.low <= 0 < 2.0 < x.max() <= found.high
    drawing = ElementTree.fromstring(range_chart(found))
    ends = sorted(float(line.get("x1")) for line in drawing.iter("line") if line.get("class") == "end")
    assert len(ends) == 2
    assert all(0 < x < WIDTH for x in ends)


def test_a_tensor_of_one_value_has_no_histogram():
    seen = qmath.Statistics.of(np.ones(100, np.float32))
    assert operand_of("layer", ActivationQuant(tensor="x", bits=8, scale=0.1), seen) is None


def test_the_worst_operands_are_drawn(report):
    [variant] = report.variants
    assert 1 <= len(variant.operands) <= 6
    assert len({o.tensor for o in variant.operands}) == len(variant.operands)
    assert sum("Values that" in c.findtext("title") for c in charts(render(report))) == len(variant.operands)


def test_other_bits_are_predicted_as_whatif_does(report, result):
    [variant] = report.variants
    assert variant.alternatives
    for alternative in variant.alternatives:
        found = {choice.bits: choice for choice in alternative.choices}
        row = next(row for row in variant.layers if row.name == alternative.layer)
        assert found[alternative.bits].sqnr_db == pytest.approx(row.predicted_sqnr_db, abs=1e-6)
        decibels = [found[k].sqnr_db for k in sorted(found)]
        assert decibels == sorted(decibels)
    one = variant.alternatives[0]
    [(before, after)] = result.whatif(f"{one.layer}:weights=3").layers
    three = next(choice for choice in one.choices if choice.bits == 3)
    now = next(choice for choice in one.choices if choice.bits == one.bits)
    assert three.sqnr_db - now.sqnr_db == pytest.approx(after.predicted_sqnr_db - before.predicted_sqnr_db, abs=1e-6)
    assert three.nbytes == after.weight_bytes


def branched():
    """A product, and one in either branch of an If: of those, only weights are quantized."""
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[N,48] x, bool c) => (float[N,48] y) {
        h = MatMul(x, w)
        y = If (c) <
            then_branch = a () => (float[N,48] t) { t = MatMul(h, u) },
            else_branch = b () => (float[N,48] e) { e = Relu(h) }
        >
    }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in "wu":
        weight = rng.normal(0, 0.2, (48, 48)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model, {"x": rng.normal(0, 1, (16, 48)).astype(np.float32), "c": np.ones(16, bool)}


def test_layers_of_branches_have_rows_too():
    model, feeds = branched()
    feeds["c"] = np.array(True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = qgraph.quantize(model, feeds, weights=4)
        report = report_of(result)
    [variant] = report.variants
    inside = next(row for row in variant.layers if "then_branch" in row.name)
    assert {row.name for row in variant.layers} == {quant.name for quant in result.plan.layers}
    assert (inside.weight_bits, inside.activation_bits, inside.integer) == (8, 8, True)
    assert inside.name in render(report)


def test_a_job_is_timed_once(report, result):
    [variant] = report.variants
    assert variant.latency == result.quality.latency
    assert f"{result.quality.worst.sqnr_db:.1f} dB" in result.quality.lines()[0]
