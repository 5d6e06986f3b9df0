"""`qgraph finetune` from its command line to its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qgraph.cli import main
from qgraph.onnxfile.load import load
from qgraph.onnxfile.opset import prepare
from qgraph.plan import registry
from qgraph.plan.plan import QuantPlan


@pytest.fixture(scope="module")
def trained(digits, digits_calibration, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    command = ["finetune", digits, "-o", folder / "out.onnx", "--data", digits_calibration, "--limit", 160]
    command += ["--weights", 3, "--activations", 3, "--epochs", 2, "--batch", 32, "--config", 4, "--quiet"]
    command += ["--plan", folder / "plan.json", "--float", folder / "float.onnx"]
    assert main([str(word) for word in command]) == 0
    return folder


def test_plan_and_float_model_make_the_same_file(trained: Path) -> None:
    plan = QuantPlan.load(trained / "plan.json")
    assert plan.model == prepare(load(trained / "float.onnx")).digest
    words = ["apply", trained / "float.onnx", trained / "plan.json", "-o", trained / "again.onnx", "--quiet"]
    assert main([str(word) for word in words]) == 0
    assert (trained / "again.onnx").read_bytes() == (trained / "out.onnx").read_bytes()


def test_json_tells_the_history(digits, digits_calibration, tmp_path, capsys) -> None:
    command = ["finetune", digits, "-o", tmp_path / "out.onnx", "--data", digits_calibration, "--limit", 96]
    command += ["--epochs", 1, "--batch", 32, "--start", tmp_path / "plan.json", "--json"]
    words = ["quantize", digits, "-o", tmp_path / "q.onnx", "--data", digits_calibration, "--limit", 64]
    assert main([str(w) for w in [*words, "--weights", 4, "--plan", tmp_path / "plan.json", "--quiet"]]) == 0
    assert main([str(w) for w in command]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [set(epoch) for epoch in printed["epochs"]] == [{"loss", "distance", "top1", "error"}] * 2
    assert printed["bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert {layer["weight_bits"] for layer in printed["layers"]} == {4, 8}
    assert printed["schedule"] == {"epochs": 1, "rate": 3e-3, "scale_rate": 3e-3}


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--epochs", "0"], 2, "epochs must be at least 1"),
        (["--config", "5"], 2, "5 is not in the range"),
        (["--batch", "5000"], 1, "too few for a batch of 5000"),
        (["--plan", "OUT"], 2, "a file of its own"),
        (["--start", "missing.json"], 1, "cannot read the plan missing.json"),
        (["--weights", "mixed"], 2, "mixed"),
        (["--method", "aciq"], 2, "method 'aciq' does not train: pass it to qgraph quantize"),
        (["--method", "lsq"], 2, "unknown method 'lsq'"),
        (["--asymmetric", "--init", "minmax", "--edge-bits", "8"], 2, "--symmetric"),
    ],
)
def test_bad_command_lines(digits, digits_calibration, tmp_path, capsys, options, status, message) -> None:
    out = str(tmp_path / "out.onnx")
    words = [out if word == "OUT" else word for word in options]
    assert main(["finetune", str(digits), "-o", out, "--data", str(digits_calibration), *words]) == status
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not Path(out).exists()


def test_method_is_one_that_trains(digits, digits_calibration, tmp_path, capsys, monkeypatch) -> None:
    def coarse(plan, given, *, config=None):
        """Full ranges, trained."""
        return plan

    toy = registry.Method(
        name="toy",
        function=coarse,
        defaults={"weights": 3, "activations": 4, "clip": "max", "symmetric": True},
        needs=frozenset(),
        after=None,
        once=False,
        trains=True,
    )
    registry.method_names()
    monkeypatch.setitem(registry._METHODS, "toy", toy)
    assert main(["finetune", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "lsqplus, toy" in shown
    assert "aciq" not in shown.split("--method")[1].split("--")[0]
    words = ["finetune", digits, "-o", tmp_path / "out.onnx", "--data", digits_calibration, "--limit", 64]
    words += ["--method", "toy", "--epochs", 1, "--batch", 16, "--plan", tmp_path / "plan.json", "--no-measure"]
    assert main([str(word) for word in [*words, "--quiet"]]) == 0
    plan = QuantPlan.load(tmp_path / "plan.json")
    assert plan.recipe == "toy"
    assert {layer.weight.bits for layer in plan.layers} == {3, 8}
