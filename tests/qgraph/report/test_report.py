"""The report: what it gathers, that nothing in a model file becomes markup, and that charts stay in their frames."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_cases import allocation

import qgraph
from qgraph.assess.bits_in_file import bits_in_file
from qgraph.errors import PlanError, UsageError
from qgraph.onnxfile.load import load
from qgraph.report import render, report_of, report_on
from qgraph.report.charts import WIDTH, Axis, Point, Series, chart
from qgraph.report.html import VOID, element
from qgraph.report.pictures import contact_sheet


class Page(HTMLParser):
    """Fails on tags that do not close; collects tags, ids and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.text = [], [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids |= {value for key, value in attrs if key == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def every(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def plans(digits, digits_calibration, tmp_path_factory):
    """The digits network at 4 and 8 bits, as plans and files."""
    folder = tmp_path_factory.mktemp("report")
    for bits in (4, 8):
        result = qgraph.quantize(
            digits, digits_calibration, weights=bits, activations=bits, limit=64, allocate_bits="none"
        )
        result.save(folder / f"w{bits}.onnx")
        (folder / f"w{bits}.json").write_text(result.plan.to_json(), encoding="utf-8")
    return folder


def test_plans_and_files_of_one_network_side_by_side(plans, digits, digits_test):
    report = report_on(digits, [str(plans / n) for n in ("w4.json", "w8.json", "w4.onnx")], digits_test, limit=100)
    four, eight, file = report.variants
    assert [v.name for v in report.variants] == ["w4.json", "w8.json", "w4.onnx"]
    assert report.count == 100
    assert report.quality.top1 > 98
    assert four.nbytes == file.nbytes == (plans / "w4.onnx").stat().st_size
    assert four.quality == file.quality
    assert four.quality.sqnr_db < eight.quality.sqnr_db
    assert 4 < four.mean_weight_bits < eight.mean_weight_bits == 8
    assert all(row.measured_sqnr_db > 10 and row.predicted_sqnr_db > 10 for row in four.layers)
    assert [row.accumulated_sqnr_db for row in four.layers] == [row.accumulated_sqnr_db for row in file.layers]
    assert all(v.latency > 0 for v in report.variants)
    page = Page(render(report))
    assert {"summary", "bits-per-layer", "layers", "error-along-the-network"} <= page.ids
    assert {a["href"] for a in page.every("a")} <= {f"#{i}" for i in page.ids}


def test_bits_are_read_from_the_file_itself(plans, digits, digits_test):
    """Codes, not types: a file of packed 4-bit weights and clamped 4-bit activations says 4 and 4."""
    report = report_on(digits, [str(plans / "w4.json"), str(plans / "w4.onnx")], digits_test, limit=8)
    plan, file = report.variants
    assert [(r.weight_bits, r.activation_bits) for r in plan.layers] == [
        (r.weight_bits, r.activation_bits) for r in file.layers
    ]
    assert set(bits_in_file(load(digits)).values()) == {(None, None)}


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_weight_only_files_too(digits, bits):
    result = qgraph.quantize(digits, weights=bits, activations=None, edge_bits=bits, method="minmax")
    found = bits_in_file(load(result.model))
    assert set(found.values()) == {(bits, None)}


def test_channels_that_share_bits_have_those_of_the_plan(digits, digits_calibration):
    """Some channels have 5 bits and as many 3: the layer has 4."""
    options = {"weights": 4, "activations": 4, "symmetric": True, "measure": False, "limit": 64}
    result = qgraph.quantize(digits, digits_calibration, allocate_bits="weights", **options)
    assert {5, 4, 3} <= {bits for layer in result.plan.layers for bits in layer.weight.channel_bits}
    found = bits_in_file(load(result.model))
    assert [found[layer.name][0] for layer in result.plan.layers] == [8, 4, 4, 4, 4, 4, 8]


def test_report_of_a_job_without_data(digits):
    result = qgraph.quantize(digits, weights=4, activations=None)
    report = report_of(result, name="out.onnx")
    assert (report.count, report.variants[0].quality) == (0, None)
    assert "sizes and bits alone" in " ".join(Page(render(report)).text)


def test_distilled_samples_are_shown(digits, monkeypatch):
    noise = {"input": np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)}
    monkeypatch.setattr("qgraph.jobs.distil.distilled_inputs", lambda *a, **k: noise)
    plan = qgraph.quantize(digits, noise, weights=4).plan
    report = report_on(digits, [plan])
    [image] = Page(render(report)).every("img")
    assert image["src"].startswith("data:image/png;base64,")
    assert "8 distilled samples" in image["alt"]
    assert report.data == "distilled samples"


def test_a_mixed_job_shows_how_its_bits_were_chosen(digits, digits_calibration):
    result = qgraph.quantize(digits, digits_calibration, weights="mixed", average_bits=4.0, limit=32, bits=(2, 4, 8))
    report = report_of(result)
    assert report.allocation is result.allocation is not None
    assert {q.name: q.weight.bits for q in result.plan.layers} == report.allocation.bits
    assert {"frontier", "sensitivity"} <= Page(render(report)).ids


HOSTILE = '</title></style><script>alert(1)</script><img src=x onerror="x()">&amp;\u202e\x07\'"'


def renamed(path, target):
    """The network with markup for names, of tensors and of layers."""
    model = onnx.load(path)
    names = {n: f"{i}{HOSTILE}" for i, n in enumerate({o for node in model.graph.node for o in node.output})}
    names.pop(model.graph.output[0].name)
    for node in model.graph.node:
        node.name = f"{node.name}{HOSTILE}"
        for field in (node.input, node.output):
            field[:] = [names.get(n, n) for n in field]
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def test_names_in_a_model_are_never_markup(digits, digits_calibration, tmp_path):
    source = renamed(digits, tmp_path / "<b>evil.onnx")
    result = qgraph.quantize(source, digits_calibration, weights=4, limit=8, keep=("*reduce*",))
    page = Page(text := render(report_of(result, name=HOSTILE)))
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert [a["src"][:10] for a in page.every("img")] == []
    assert "<b>evil.onnx" in "".join(page.text)
    assert "</title></style><script>alert(1)</script>" in "".join(page.text)
    assert not {"\u202e", "\x07"} & set(text)
    assert page.every("meta")[2]["content"].startswith("default-src 'none'")


@given(st.text(), st.text())
@settings(max_examples=50)
def test_any_text_survives_escaping(text, attribute):
    node = ElementTree.fromstring(element("p", text, title=attribute))
    assert list(node) == []
    assert set(node.attrib) == {"title"}
    kept = [c for c in text if c.isprintable() and c != "\ufffd"]
    assert [c for c in "".join(node.itertext()) if c.isprintable() and c != "\ufffd"] == kept


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(st.lists(st.tuples(numbers, numbers), max_size=20), st.booleans(), st.booleans())
@settings(max_examples=50)
def test_every_mark_lies_in_the_frame(pairs, line, emphasis):
    points = tuple(Point(x=x, y=y) for x, y in pairs)
    series = Series(name="s", points=points, line=line, emphasis=emphasis)
    shown = series.finite()
    axes = Axis.over("x", [p.x for p in shown]), Axis.over("y", [p.y for p in shown])
    drawing = ElementTree.fromstring(chart("title", [series], *axes))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in drawing.iter("circle")]
    assert len(circles) == len(shown)
    assert all(0 <= x <= WIDTH and 0 <= y <= 230 for x, y in circles)
    assert all(math.isfinite(float(n)) for n in re.findall(r"[-\d.e]+", drawing.findtext(".//path[@d]") or ""))


@given(st.floats(1e-12, 1e12), st.floats(1.0, 1e9), st.booleans())
@settings(max_examples=50)
def test_ticks_are_few_and_within(low, ratio, log):
    axis = Axis.over("x", [low, low * ratio], log=log)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-1e-6 <= axis.place(t) <= 1 + 1e-6 for t in ticks)


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (40, 1, 8, 8), (3, 32, 24, 3), (1, 3, 300, 100)])
def test_a_contact_sheet_shows_every_sample(shape):
    uri, count = contact_sheet(np.random.default_rng(0).standard_normal(shape))
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert count == min(shape[0], 32)
    assert max(image.size) <= 8 * 66
    assert image.size[0] * image.size[1] >= 0.3 * 64 * 64 * count


@pytest.mark.parametrize("shape", [(5, 7), (5, 4, 8, 8), (0, 3, 8, 8)])
def test_what_is_no_image_is_not_shown(shape):
    assert contact_sheet(np.zeros(shape)) is None


def test_the_frontier_and_its_chosen_point(digits, digits_calibration):
    result = qgraph.quantize(digits, digits_calibration, weights=4, limit=32)
    mixed = allocation(result)
    report = dataclasses.replace(report_of(result), allocation=mixed)
    page = Page(render(report))
    text = " ".join(page.text)
    assert {"frontier", "sensitivity"} <= page.ids
    assert f"{len(mixed.frontier):,} selections" in text
    assert f"{mixed.chosen.size / 2**20:.4f} (chosen)" in text
    cells = [a for a in page.every("td") if "style" in a]
    assert len(cells) == sum(len(layer.bits) for layer in mixed.sensitivity.layers)
    framed = [a for a in cells if "chosen" in a["class"]]
    assert len(framed) == len(result.plan.layers)
    shares = [float(re.search(r"--t:(\d+)%", a["style"])[1]) for a in cells]
    omega = [v for layer in mixed.sensitivity.layers for v in layer.measured]
    assert np.argsort(omega, kind="stable")[[0, -1]].tolist() == [shares.index(0), shares.index(100)]


def test_a_plan_of_another_model_is_refused(plans, digits, digits_test):
    plan = qgraph.QuantPlan.load(plans / "w4.json")
    other = dataclasses.replace(plan, model="0" * 64)
    with pytest.raises(PlanError, match="another model"):
        report_on(digits, [other], digits_test)
    with pytest.raises(UsageError, match="nothing to report on"):
        report_on(digits, [], digits_test)


def test_the_same_report_twice(plans, digits, digits_test):
    """All but the latencies and the date is the same, to the byte."""
    first, second = (report_on(digits, [str(plans / "w4.json")], digits_test, limit=32) for _ in range(2))
    still = [
        dataclasses.replace(r, made=first.made, variants=tuple(dataclasses.replace(v, latency=1.0) for v in r.variants))
        for r in (first, second)
    ]
    assert render(still[0]) == render(still[1])
