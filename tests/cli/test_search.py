"""`qgraph search` through the real command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from qgraph.cli import main
from qgraph.plan.plan import QuantPlan

QUICK = ["--limit", "48", "--weights", "3", "--activations", "4", "--ingredients", "bias,clip"]


def test_a_plan_is_found_and_applied(digits, digits_calibration, tmp_path, capsys):
    plan, out = tmp_path / "plan.json", tmp_path / "out.onnx"
    assert main(["search", str(digits), "--data", str(digits_calibration), "-o", str(plan), "--json", *QUICK]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["objective"] == "loss"  # the samples have labels
    assert result["samples"] == 48
    assert result["objective_before"] < result["objective_after"] < 0
    assert result["objective_after"] == result["layers"][-1]["objective"]
    assert result["image_forwards"]["run"] < result["image_forwards"]["algorithm"]
    assert {layer["name"] for layer in result["layers"]} == {layer.name for layer in QuantPlan.load(plan).layers}
    assert main(["apply", str(digits), str(plan), "-o", str(out), "--quiet"]) == 0
    before = plan.read_bytes()
    assert main(["search", str(digits), "--data", str(digits_calibration), "-o", str(plan), *QUICK]) == 0
    assert plan.read_bytes() == before
    out = capsys.readouterr().out
    assert "image-forwards" in out
    before, after, percent = re.search(r"gained: loss (\S+) -> (\S+) \((-\d+)%\) over the plan", out).groups()
    assert before == f"{-result['objective_before']:.5f}"
    assert after == f"{-result['objective_after']:.5f}"
    assert abs(float(percent) - 100 * (float(after) / float(before) - 1)) < 2
    assert f"next: qgraph apply {digits} {plan} -o small.onnx" in out


def test_a_paper_plan_keeps_batch_normalization_when_applied(digits, digits_calibration, digits_test, tmp_path, capsys):
    plan, out = tmp_path / "plan.json", tmp_path / "out.onnx"
    command = ["search", str(digits), "--data", str(digits_calibration), "-o", str(plan), "--protocol", "paper"]
    assert main([*command, *QUICK[:2], "--weights", "4", "--ingredients", "bias", "--objective", "mse", "--quiet"]) == 0
    assert QuantPlan.load(plan).fold_bn is False
    assert main(["apply", str(digits), str(plan), "-o", str(out), "--quiet"]) == 0
    assert main(["evaluate", str(out), "--data", str(digits_test), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 95


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_interrupted_says_how_to_go_on(digits, digits_calibration, tmp_path):
    folder = tmp_path / "journal"
    command = ["search", str(digits), "--data", str(digits_calibration), "-o", str(tmp_path / "plan.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "qgraph", *command, "--weights", "3", "--resume", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    deadline = time.time() + 60
    while time.time() < deadline and not (folder / "best.plan.json").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"the same command continues from {folder}: qgraph {' '.join(command)}" in err
    assert "best plan so far makes a file: qgraph apply" in err
    assert len(err.splitlines()) < 10
    assert not (tmp_path / "plan.json").exists()
    assert out == ""
    assert QuantPlan.load(folder / "best.plan.json").layers
