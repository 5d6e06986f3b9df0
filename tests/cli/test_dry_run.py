"""--dry-run: how long a job takes, with nothing written."""

from __future__ import annotations

import json

import pytest

from qgraph.cli import main
from qgraph.running import estimate


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_nothing_is_written_and_stages_are_told(digits, digits_calibration, tmp_path, capsys):
    words = ["--data", str(digits_calibration), "--limit", "64", "--weights", "mixed", "--average-bits", "4"]
    outputs = ["-o", "out.onnx", "--plan", "plan.json", "--report", "report.html", "--resume", "kept"]
    assert main(["quantize", str(digits), *words, *outputs, "--dry-run", "--json"]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    stages = {stage["stage"]: stage for stage in told["stages"]}
    assert told["workers"] == [1, 2, 5, 20, 100]
    assert stages["sensitivity"]["pieces"] == stages["sensitivity"]["total"] == 7
    assert stages["sensitivity"]["seconds"][0] >= stages["sensitivity"]["seconds"][-1] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["distill", "sensitivity", "search", "finetune", "evaluate"])
def test_every_command_can_be_tried(command, digits, digits_calibration, tmp_path, capsys, monkeypatch):
    whole = estimate.Estimate
    monkeypatch.setattr(estimate, "Estimate", lambda threads: whole(threads=threads, seconds=0.0))  # ends at once
    words = ["-o", "out"] if command != "evaluate" else []
    words += [] if command == "distill" else ["--data", str(digits_calibration), "--limit", "64"]
    assert main([command, str(digits), *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Seconds on so many workers" in said
    assert "The job was ended there" in said
    assert list(tmp_path.iterdir()) == []


def test_errors_are_those_of_the_command(digits, capsys):
    assert main(["evaluate", str(digits), "--data", "none.npz", "--dry-run"]) == 1
    assert "none.npz" in capsys.readouterr().err
