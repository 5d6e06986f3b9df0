"""What a result hands on and shows: protos, other plans, lines, tables, frames, pictures and the report."""

from __future__ import annotations

import re
import sys
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import qgraph
from qgraph.errors import MissingPackageError, ModelError, PlanError, UsageError


@pytest.fixture(scope="module")
def result(digits, digits_calibration):
    return qgraph.quantize(digits, digits_calibration, limit=128, weights="4", activations="8")


@pytest.fixture(scope="module")
def unmeasured(digits):
    return qgraph.quantize(digits, activations=None, measure=False)


def test_bits_may_be_text_or_numbers_of_numpy(digits):
    plans = [
        qgraph.quantize(digits, activations="none", weights=bits, edge_bits=edge, measure=False).plan
        for bits, edge in ((4, 6), ("4", "6"), (np.int64(4), np.int8(6)))
    ]
    assert plans[0] == plans[1] == plans[2]
    with pytest.raises(UsageError, match="weights must be a number from 2 to 8, not four"):
        qgraph.quantize(digits, activations=None, weights="four")
    with pytest.raises(UsageError, match=r"weights must be a number from 2 to 8, not 4\.5"):
        qgraph.quantize(digits, activations=None, weights=4.5)


def test_a_proto_in_and_the_saved_file_out(digits, result, tmp_path):
    from_proto = qgraph.quantize(onnx.load(digits), activations=None, measure=False)
    assert isinstance(from_proto.to_proto(), onnx.ModelProto)
    for made in (result, from_proto):
        made.save(tmp_path / "m.onnx")
        assert made.to_proto().SerializeToString(deterministic=True) == (tmp_path / "m.onnx").read_bytes()
    applied = qgraph.apply(digits, result.plan, measure=False)
    assert applied.to_proto() == result.to_proto()
    assert repr(applied) == f"Applied({digits}, opset {applied.opset})"
    session = ort.InferenceSession(result.to_proto().SerializeToString())
    assert session.run(None, {"input": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)


def test_a_proto_of_too_many_bytes_is_refused(monkeypatch, unmeasured):
    monkeypatch.setattr("qgraph.running.sessions.fits_one_file", lambda model: False)
    with pytest.raises(ModelError, match="weights of more than 2 GB fit in no ModelProto"):
        unmeasured.to_proto()


def test_a_result_is_evaluated_as_its_file_is(digits, digits_test, result, tmp_path):
    result.save(tmp_path / "m.onnx")
    by_path = qgraph.evaluate(tmp_path / "m.onnx", digits_test, against=digits, limit=200)
    assert by_path.top1 is not None
    for given in (result, result.to_proto(), qgraph.apply(digits, result.plan, measure=False)):
        found = qgraph.evaluate(given, digits_test, against=digits, limit=200)
        assert found == by_path
    alone = qgraph.evaluate(result, digits_test, limit=200)  # against its own float network
    assert (alone.top1, alone.against_top1) == (by_path.top1, by_path.against_top1)
    assert alone.sqnr_db == pytest.approx(by_path.sqnr_db, abs=0.01)
    assert qgraph.evaluate(result, np.load(digits_test)["images"][:50]).sqnr_db > 15  # without labels
    assert qgraph.compare(digits, [result], digits_test, limit=16)[0].sqnr_db[0] > 15


def test_a_result_is_evaluated_with_the_normalisation_it_was_made_with(digits, digits_calibration, digits_test):
    dark = qgraph.Preprocessing(mean=0.5, std=[0.5])
    assert dark == qgraph.Preprocessing(mean=(0.5,), std=(0.5,))
    made = qgraph.quantize(digits, digits_calibration, limit=32, preprocessing=dark, measure=False)
    found = qgraph.evaluate(made, digits_test, limit=100)
    assert found == qgraph.evaluate(made, digits_test, limit=100, preprocessing=dark)
    assert found != qgraph.evaluate(made, digits_test, limit=100, preprocessing=qgraph.Preprocessing())


def test_results_show_themselves_in_a_line(result, unmeasured):
    said = (
        r"Result\(digits\.onnx: 7 layers, weights of 4 and 8 bits, activations of 8 bits; "
        r"3\d,\d{3} bytes, 0\.1\d of float; logits 3\d\.\d dB\)"
    )
    assert re.fullmatch(said, repr(result))
    assert repr(unmeasured).endswith("; not measured)")
    assert not {"layers", "layers_in_file"} & {*vars(unmeasured)}, "printing measures nothing"
    assert repr(result.plan) == "QuantPlan(aciq: 7 layers, weights of 4 and 8 bits, activations of 8 bits)"
    assert repr(result.observed).startswith("Observations(")
    assert str(result.quality).splitlines() == list(result.quality.lines())
    for value in (
        result.plan,
        result.observed,
        *result.observed.tensors.values(),
        *result.plan.layers,
        *result.plan.activations,
        result.net,
    ):
        assert len(repr(value)) < 200


def test_a_notebook_shows_layers_without_measuring(result, unmeasured, monkeypatch):
    html = result._repr_html_()
    assert html.count("<tr>") == 1 + len(result.plan.layers)
    assert "quality: accuracy" in html
    assert all(layer.name in html for layer in result.plan.layers)
    monkeypatch.setattr("qgraph.jobs.result.layers_in_file", None)  # would be called
    monkeypatch.setattr("qgraph.assess.layer_errors.measured_power", None)
    assert "stem/conv" in unmeasured._repr_html_()


def test_names_in_a_notebook_are_no_markup(result):
    from qgraph.report.cells import result_cell

    assert "<script" not in result_cell("<script>", [], ["<script>"])


def test_a_report_is_a_cell_and_a_file(result, tmp_path):
    page = result.report(name="four bits")
    page.save(tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text("utf-8") == page.html
    assert "four bits" in page.html
    cell = page._repr_html_()
    assert cell.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert cell.count("<") == 2, "the page is quoted whole"
    assert len(repr(page)) < 200


def test_what_if_is_measured_on_the_samples_of_the_result(result):
    predicted = result.whatif("stem/conv:weights=3")
    assert predicted.quality is None
    found = result.whatif("stem/conv:weights=3", measure=True)
    assert repr(predicted) == f"WhatIf(1 layer changes, {found.nbytes[0]:,} -> {found.nbytes[1]:,} bytes)"
    before, after = found.quality
    assert before.worst.sqnr_db == pytest.approx(result.quality.worst.sqnr_db)
    assert before.worst.sqnr_db > after.worst.sqnr_db + 2
    assert repr(found).endswith(f"worst output {before.worst.sqnr_db:.1f} -> {after.worst.sqnr_db:.1f} dB)")
    (old, new), = found.layers  # fmt: skip
    assert old.simulated_sqnr_db > new.simulated_sqnr_db + 10
    assert "8 → 3" in found._repr_html_()
    assert result.with_plan(found.plan).quality.worst == after.worst


def test_bits_in_a_plan_by_name(digits, result):
    plan = result.plan.replace("*:weights=3", "stem/*:weights=8", recipe="by hand")
    assert plan.recipe == "by hand"
    assert [layer.weight.bits for layer in plan.layers] == [8, *[3] * 6]
    assert plan.layers[0] == result.plan.layers[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing has to be fitted again: the ends stay
        other = result.with_plan(plan)
    assert 5 < other.quality.worst.sqnr_db < result.quality.worst.sqnr_db
    assert other.to_proto() == qgraph.apply(digits, plan, measure=False).to_proto()
    assert result.plan.replace() == result.plan
    with pytest.raises(UsageError, match="a plan alone does not know what a layer reads"):
        result.plan.replace("stem/conv:activations=4")
    with pytest.raises(UsageError, match="did you mean stem/conv"):
        result.plan.replace("stem/cnov:weights=4")
    with pytest.raises(TypeError, match="bitz"):
        result.plan.replace(bitz=3)
    with pytest.raises(PlanError, match="made for another model"):
        result.with_plan(plan.replace(model="0" * 64))


def ends_of(grid):
    codes = zip(*grid.limits, strict=True)
    return [(np.asarray(each) - np.asarray(grid.zero_point)) * np.asarray(grid.scale) for each in codes]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_a_grid_of_other_bits_keeps_its_ends(digits, symmetric, bits):
    made = qgraph.quantize(
        digits, activations=None, weights=4, edge_bits=4, symmetric=symmetric, group="none", measure=False
    )
    for old, new in zip(made.plan.layers, made.plan.replace(f"*:weights={bits}").layers, strict=True):
        step = np.asarray(new.weight.scale)
        ends = [ends_of(old.weight), ends_of(new.weight)]
        if new.weight.symmetric and not symmetric:
            ends[0] = [-np.maximum(*np.abs(ends[0])), np.maximum(*np.abs(ends[0]))]
        assert np.abs(np.subtract(*ends)).max() <= (0.5 + 1e-9) * step.max()  # zero moves onto a level
        assert new.weight.bits == bits


def test_frames(result, unmeasured):
    pandas = pytest.importorskip("pandas", reason='needs the extra: pip install "qgraph-onnx[analysis]"')
    frame = result.to_frame()
    assert list(frame.index) == [layer.name for layer in result.layers]
    assert frame.loc["stem/conv", "weight_bits"] == 8
    assert frame["measured_sqnr_db"].min() == min(layer.measured_sqnr_db for layer in result.layers)
    assert unmeasured.to_frame()["measured_sqnr_db"].isna().all()
    assert unmeasured.to_frame()["activation_bits"].isna().all()
    changed = result.whatif("stem/conv:weights=3").to_frame()
    assert changed.loc["stem/conv", ["weight_bits_before", "weight_bits_after"]].tolist() == [8, 3]
    plan = result.plan.to_frame()
    assert isinstance(plan, pandas.DataFrame)
    assert plan.loc["stem/conv", "scales"] == len(result.plan.layers[0].weight.scale)


def test_pictures(result):
    pytest.importorskip("matplotlib", reason='needs the extra: pip install "qgraph-onnx[analysis]"').use("agg")
    ax = result.plot()
    heights = sorted(bar.get_height() for bar in ax.patches)
    assert heights == pytest.approx(sorted(layer.measured_sqnr_db for layer in result.layers))
    predicted = ax.lines[0].get_ydata()
    assert predicted == pytest.approx([layer.predicted_sqnr_db for layer in result.layers_unsimulated])
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["4-bit weights", "8-bit weights"]
    assert result.plot(ax) is ax


@pytest.mark.parametrize(("package", "use"), [("pandas", "to_frame"), ("matplotlib", "plot")])
def test_a_missing_package_is_named_with_the_command_to_type(package, use, result, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingPackageError) as found:
        getattr(result, use)()
    said = str(found.value)
    assert f"{use}() " in said
    assert ("needs pandas: pip install" in said) == (package == "pandas")
    assert ("needs matplotlib: pip install" in said) == (package == "matplotlib")
    assert said.endswith('"qgraph-onnx[analysis]"')
    assert isinstance(found.value, ImportError)
