"""The verdict on the command line: three lines, `quality` in JSON and plan, thresholds that fail a build."""

from __future__ import annotations

import json

import numpy as np
import pytest

import qgraph
from qgraph.assess.latency import Latency
from qgraph.cli import main
from qgraph.plan.plan import QuantPlan

METRIC = """
def right(outputs, labels):
    return float((outputs["logits"].argmax(axis=1) == labels).mean())

def constant(outputs, labels):
    return 1.0

def broken(outputs, labels):
    return outputs["no such output"]
"""


@pytest.fixture
def job(digits, digits_calibration, tmp_path, monkeypatch):
    (tmp_path / "metric_for_test.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    return ["quantize", str(digits), "-o", "small.onnx", "--data", str(digits_calibration), "--limit", "80"]


def test_three_lines(job, capsys):
    assert main(job) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith(("quality: ", "size: ", "speed: "))]
    assert len(lines) == 3
    assert "on 10 samples held out from calibration" in printed
    assert main([*job, "--no-measure"]) == 0
    assert "quality: " not in capsys.readouterr().out
    assert main([*job, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_activations_are_not_given_up_without_a_word(job, capsys, monkeypatch):
    monkeypatch.setattr("qgraph.jobs.no_slower.SLOWER", 0.0)
    monkeypatch.setattr("qgraph.jobs.no_slower.TIMED_SECONDS", 0.0)
    monkeypatch.setattr("qgraph.jobs.no_slower._without_slow_layers", lambda result: None)
    latencies = iter([1.3, 1.0] + [1.0] * 9)
    monkeypatch.setattr("qgraph.assess.verdict.latency", lambda *_: Latency(next(latencies), 0.01))
    assert main([*job, "--guard", "off"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "measured: activations stay floating point: integers take 1.30 of the float model's time" in printed
    assert main(["inspect", "small.onnx", "--fused"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "its weight is floating point" not in printed
    assert "likely slower" not in printed


def test_json_and_plan_hold_all_of_it(job, digits, capsys, tmp_path):
    assert main([*job, "--json", "--plan", "plan.json"]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["outputs"][0]["name"] == "logits"
    assert quality["basis"] == "held-out"
    plan = QuantPlan.load(tmp_path / "plan.json")
    assert plan.quality == quality
    assert main(["apply", str(digits), "plan.json", "-o", "again.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["basis"] == "noise"
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()


def test_apply_is_judged_by_data(job, digits, digits_test, capsys, tmp_path):
    assert main([*job, "--plan", "plan.json", "--no-measure", "--quiet"]) == 0
    assert QuantPlan.load(tmp_path / "plan.json").quality is None
    arguments = ["apply", str(digits), "plan.json", "-o", "again.onnx", "--data", str(digits_test)]
    assert main([*arguments, "--json"]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert (quality["basis"], quality["samples"]) == ("given", 64)
    assert quality["accuracy"]["samples"] == 64
    assert main([*arguments, "--no-measure"]) == 0
    assert "quality: " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("threshold", "status"),
    {
        "accuracy without a unit": ("99", 0),
        "accuracy": ("99%", 0),
        "more than all": ("101", 1),
        "dB": ("20dB", 0),
        "more dB": ("90 db", 1),
    }.values(),
)
def test_thresholds(job, tmp_path, capsys, threshold, status):
    assert main([*job, "--quiet", "--fail-below", threshold]) == status
    assert (tmp_path / "small.onnx").exists(), "the file is there either way"
    assert ("is written, but it is below --fail-below" in capsys.readouterr().err) == bool(status)


def test_a_figure_that_cannot_be_told_fails(job, digits_calibration, tmp_path, capsys):
    np.savez(tmp_path / "unlabelled.npz", images=np.load(digits_calibration)["images"][:16])
    arguments = [*job[:5], "unlabelled.npz", "--quiet", "--fail-below"]
    assert main([*arguments, "50%"]) == 1
    assert "cannot be checked: no accuracy" in capsys.readouterr().err
    assert main([*arguments, "20"]) == 0, "dB, for want of labels"
    assert main([*job, "--fail-below", "20", "--no-measure"]) == 2
    assert "--fail-below needs a measurement" in capsys.readouterr().err
    assert main([*job, "--fail-below", "good"]) == 2


def test_a_metric_of_ones_own(job, capsys):
    assert main([*job, "--metric", "metric_for_test:right", "--json", "--fail-below", "0.9"]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["metric"]["name"] == "metric_for_test:right"
    assert quality["metric"]["after"] == quality["accuracy"]["after"] / 100
    assert main([*job, "--metric", "metric_for_test:right", "--quiet", "--fail-below", "1.1"]) == 1
    assert "metric_for_test:right has" in capsys.readouterr().err
    assert main([*job, "--metric", "metric_for_test:broken"]) == 1
    assert "fails on these data" in capsys.readouterr().err
    assert main([*job, "--metric", "metric_for_test"]) == 2


def test_max_drop_says_on_how_many_samples(job, capsys):
    arguments = [*job[:-1], "200", "--weights", "mixed", "--max-drop", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "--max-drop: accuracy" in printed
    assert "on 88 samples held out from calibration" in printed
    assert main([*arguments, "--json"]) == 0
    drop = json.loads(capsys.readouterr().out)["max_drop"]
    assert drop["before"] - drop["after"] <= 2
    assert drop["samples"] == 88
    assert 0 < drop["margin"] < 10


def test_max_drop_is_judged_by_samples_that_calibrated_nothing(digits, digits_calibration):
    """Labels of what calibrates are wrong on purpose, and nobody minds."""
    with np.load(digits_calibration) as archive:
        images, labels = archive["images"][:200], archive["labels"][:200].copy()
    result = qgraph.quantize(digits, {"images": images, "labels": labels}, max_drop=2.0)
    used = set(result.samples.rows)
    labels[list(used)] = (labels[list(used)] + 1) % 10
    again = qgraph.quantize(digits, {"images": images, "labels": labels}, max_drop=2.0)
    assert again.plan == result.plan
    assert again.allocation.drop == result.allocation.drop
    assert len(used) == 87


def test_max_drop_by_a_metric_needs_no_labels(digits, digits_calibration):
    images = np.load(digits_calibration)["images"][:40]

    def sure(outputs, labels):
        assert labels is None
        return 1.0

    result = qgraph.quantize(digits, images, max_drop=0.0, metric=sure)
    assert {layer.weight_bits for layer in result.layers} == {2}, "whatever is given up costs nothing"
    assert result.allocation.drop.name == "sure"


def test_finetune_ends_with_a_verdict(job, digits, capsys):
    arguments = ["finetune", *job[1:], "--epochs", "3", "--batch", "16", "--json"]
    assert main(arguments) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["basis"] == "held-out"
    assert quality["float_nbytes"] == digits.stat().st_size
