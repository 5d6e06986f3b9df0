"""Every command once, as a person would type it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import onnx
import pytest

from qgraph.cli import main
from qgraph.cli.console import Minutes, progress
from qgraph.plan.plan import QuantPlan
from qgraph.running.progress import SILENT


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments):
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_quantize_apply_evaluate(run, digits, digits_calibration, digits_test, tmp_path):
    status, out, err = run(
        *("quantize", digits, "-o", "small.onnx", "--data", digits_calibration, "--weights", 4, "--plan", "plan.json"),
        *("--calibration", "statistics.npz"),
    )
    assert (status, err) == (0, "")
    assert "classifier" in out
    assert "% of 205,768" in out
    onnx.checker.check_model(onnx.load("small.onnx"), full_check=True)
    assert QuantPlan.load("plan.json").recipe == "aciq"

    status, out, _ = run("apply", digits, "plan.json", "-o", "again.onnx", "--json")
    assert status == 0
    assert json.loads(out)["bytes"] == (tmp_path / "small.onnx").stat().st_size
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()

    status, out, _ = run("evaluate", "small.onnx", "--data", digits_test, "--against", digits, "--json")
    quality = json.loads(out)
    assert status == 0
    assert quality["count"] == 600
    assert quality["top1"] > 99
    assert quality["kl"] < 0.05
    assert quality["sqnr_db"] > 15

    status, out, _ = run("evaluate", "small.onnx", "--data", digits_test, "--limit", 5)
    assert status == 0
    assert "top-1" in out


def test_json_goes_to_stdout_alone(run, digits, digits_calibration):
    status, out, err = run("quantize", digits, "-o", "q.onnx", "--data", digits_calibration, "--json")
    content = json.loads(out)
    assert (status, err) == (0, "")
    assert content["output"] == "q.onnx"
    assert content["data"] == "calibration"
    assert len(content["layers"]) == 7


def test_quiet_prints_nothing(run, digits, digits_calibration):
    assert run("quantize", digits, "-o", "q.onnx", "--data", digits_calibration, "--quiet") == (0, "", "")


def test_inspect(run, digits, digits_calibration):
    status, out, _ = run("inspect", digits, "--json")
    content = json.loads(out)
    assert status == 0
    assert content["opset"] == 18
    assert [layer["op"] for layer in content["layers"]].count("Conv") == 6
    assert "stem/conv" in run("inspect", digits)[1]
    run("quantize", digits, "-o", "q.onnx", "--data", digits_calibration)
    assert "7 of 7 layers run on integers" in run("inspect", "q.onnx", "--fused")[1]


def test_compare(run, digits, digits_calibration, digits_test):
    for bits in (4, 8):
        run("quantize", digits, "-o", f"w{bits}.onnx", "--data", digits_calibration, "--weights", bits)
    status, out, _ = run("compare", digits, "w4.onnx", "w8.onnx", "--data", digits_test, "--json")
    rows = json.loads(out)["layers"]
    assert status == 0
    assert all(row["sqnr_db"][0] < row["sqnr_db"][1] for row in rows[1:])
    assert "classifier" in run("compare", digits, "w4.onnx", "--data", digits_test)[1]
    rejected = [layer["prior_rejected"] for layer in json.loads(out)["layers"]]
    assert all(isinstance(flag, bool) for flags in rejected for flag in flags)


def test_report(run, digits, digits_calibration, digits_test, tmp_path):
    calibration = ("--data", digits_calibration, "--limit", 64)
    assert run("quantize", digits, "-o", "a.onnx", *calibration, "--plan", "a.json", "--report", "a.html")[0] == 0
    assert "a.onnx" in (tmp_path / "a.html").read_text(encoding="utf-8")
    status, out, err = run(
        "report", digits, "a.json", "a.onnx", "--data", digits_test, "--limit", 50, "-o", "b.html", "--json"
    )
    content = json.loads(out)
    assert (status, err) == (0, "")
    assert (content["count"], [v["name"] for v in content["variants"]]) == (50, ["a.json", "a.onnx"])
    assert content["bytes"] == digits.stat().st_size
    assert (tmp_path / "b.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert run("report", digits, "-o", "c.html")[0] == 2
    assert run("report", digits, "a.onnx", "-o", "a.onnx")[0] == 2
    assert run("quantize", digits, "-o", "d.onnx", "--report", "d.onnx")[0] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.json", "a.onnx", "a.statistics.npz", "b.html"]


VARIANTS = ("w8a8", "w4a8", "w4a4", "w8a8-no-data", "w4a8-no-data")


def test_demo_writes_models_and_plans(run, tmp_path):
    status, out, _ = run("demo", "--json")
    rows = {row["model"]: row for row in json.loads(out)}
    assert status == 0
    assert list(rows) == ["float", "W8A8", "W4A8", "W4A4", "W8A8, no data", "W4A8, no data"]
    assert rows["W8A8, no data"]["top1"] >= rows["float"]["top1"] - 0.6
    assert rows["W8A8"]["top1"] >= rows["float"]["top1"] - 0.4
    assert rows["W4A8"]["bytes"] < 0.7 * rows["W8A8"]["bytes"] < 0.25 * rows["float"]["bytes"]
    names = sorted(p.name for p in (tmp_path / "qgraph-demo").iterdir())
    assert names == sorted(f"digits-{b}.{s}" for b in VARIANTS for s in ("onnx", "plan.json"))


def test_distill_then_calibrate(run, digits, tmp_path):
    status, out, err = run("distill", digits, "-o", "d.npz", "--count", 8, "--steps", 20, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["inputs"] == {"input": [8, 1, 8, 8]}
    assert run("quantize", digits, "-o", "q.onnx", "--data", "d.npz")[0] == 0


def test_no_data_at_all(run, digits, digits_test):
    status, out, _ = run("quantize", digits, "-o", "q.onnx", "--weights", 4, "--json")
    assert status == 0
    assert json.loads(out)["data"] == "distilled"
    assert json.loads(run("evaluate", "q.onnx", "--data", digits_test, "--json")[1])["top1"] > 98


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(run, shell):
    status, out, _ = run("completion", shell)
    assert status == 0
    assert "_QGRAPH_COMPLETE" in out


@pytest.mark.parametrize(
    "command",
    ["quantize", "apply", "distill", "evaluate", "compare", "inspect", "report", "demo", "warmup", "completion"],
)
def test_every_command_has_an_example(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "Example" in out
    assert f"qgraph {command}" in out


def test_version_and_help(run):
    assert run("--version")[1].startswith("qgraph, version ")
    assert "quantize" in run("--help")[1]


def test_an_interrupt_leaves_nothing_behind(digits, tmp_path):
    """Ctrl-C while quantizing: exit 130, no traceback, no file."""
    script = (
        "import sys, qgraph.jobs.prepare as p, time\n"
        "p.observe = lambda *a, **k: (print('observing', flush=True), time.sleep(60))\n"
        "from qgraph.cli import COMMANDS, main\n"
        f"data = {str(digits.parent / 'digits_test.npz')!r}\n"
        f"sys.exit(main(['quantize', {str(digits)!r}, '-o', 'out.onnx', '--data', data]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "observing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_error(digits, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "qgraph", "inspect", str(digits)], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == b""


def test_what_if(run, digits, digits_calibration, digits_test, tmp_path):
    made = ("quantize", digits, "-o", "q.onnx", "--data", digits_calibration, "--limit", 64)
    assert run(*made, "--plan", "plan.json", "--mean", "0.1", "--no-measure", "--quiet")[0] == 0
    plan = QuantPlan.load("plan.json")
    assert plan.made["command"].startswith(f"qgraph quantize {digits} --data")
    assert "plan.json" not in plan.made["command"]
    assert plan.preprocessing.mean == (0.1,)
    status, out, err = run("whatif", digits, "plan.json", "--set", "stem/conv:weights=3", "-o", "other.json", "--json")
    content = json.loads(out)
    assert (status, err) == (0, "")
    (layer,) = content["layers"]
    assert layer["name"] == "stem/conv"
    assert layer["before"]["predicted_sqnr_db"] > layer["after"]["predicted_sqnr_db"] + 15
    assert content["quality"] is None
    assert run("apply", digits, "other.json", "-o", "other.onnx", "--no-measure")[0] == 0
    assert (tmp_path / "other.onnx").stat().st_size == content["bytes"]["after"]
    status, out, _ = run("whatif", digits, "plan.json", "--set", "*:weights=2", "--data", digits_test)
    assert status == 0
    assert "8 -> 2" in out
    assert "output logits, dB" in out
    assert run("whatif", digits, "plan.json")[0] == 2


def test_files_are_judged_on_samples_normalised_as_their_plan_says(run, digits, digits_calibration, digits_test):
    made = ("quantize", digits, "-o", "q.onnx", "--data", digits_calibration, "--limit", 32, "--no-measure", "--quiet")
    assert run(*made, "--plan", "plan.json", "--mean", "0.9")[0] == 0
    judge = ("--data", digits_test, "--limit", 64, "--json")
    commands = [
        ("evaluate", "q.onnx", "--against", digits, *judge),
        ("compare", digits, "q.onnx", *judge),
        ("certify", "q.onnx", "--against", digits, "--claim", "drop<=90", *judge),
    ]
    for words in commands:
        plain, said, planned = (run(*words, *more) for more in ((), ("--mean", "0.9"), ("--made-from", "plan.json")))
        found = [json.loads(out) for _, out, _ in (plain, said, planned)]
        if words[0] == "certify":  # which measures latency, too
            found = [content["counts"] for content in found]
        assert found[1] == found[2] != found[0], words[0]


def test_progress_without_a_terminal_is_a_line_a_minute(capsys) -> None:
    times = iter([0.0, 30.0, 61.0, 90.0, 125.0])
    lines = Minutes(clock=lambda: next(times))
    with lines.stage("distilling", 10) as advance:
        advance(1, "loss 3")
        advance(2, "loss 2")
        advance(3)
    with lines.stage("searching") as advance:
        advance(1)
    said = capsys.readouterr()
    assert said.err.splitlines() == ["distilling: 3 of 10, loss 2, 61 s", "searching: 1, 125 s"]
    assert said.out == ""
    assert progress(quiet=True).inner is SILENT
    assert isinstance(progress(quiet=False).inner, Minutes)  # pytest's stderr is no terminal
