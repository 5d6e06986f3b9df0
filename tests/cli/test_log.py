"""-v and --log-file."""

from __future__ import annotations

import json
import logging
import re

import pytest

from qgraph.cli import main


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def quantized(digits, digits_calibration, *options):
    words = ["quantize", str(digits), "-o", "out.onnx", "--data", str(digits_calibration), "--limit", "64"]
    return main([*words, "--no-measure", *options])


def test_verbose_says_what_takes_time(digits, digits_calibration, capsys):
    assert quantized(digits, digits_calibration, "-v", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["output"] == "out.onnx"
    lines = said.err.splitlines()
    assert lines[0].split(" s  ")[1].startswith("qgraph quantize ")
    assert any(re.search(r"observing: \d+ in \d", line) for line in lines)
    assert "exit status 0 after " in lines[-1]
    assert not logging.getLogger("qgraph").isEnabledFor(logging.DEBUG)  # forgotten when the command ends
    assert quantized(digits, digits_calibration, "--json") == 0
    assert capsys.readouterr().err == ""


def test_a_log_has_versions_stages_rows_and_the_end(digits, digits_calibration, tmp_path, capsys):
    assert quantized(digits, digits_calibration, "--log-file", "run.log") == 0
    said = capsys.readouterr()
    assert "observing" not in said.err
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.split(" ", 2)[2].startswith("INFO    qgraph quantize")
    for word in ("onnxruntime ", "Python 3.", "observing: 56 in ", "residual/second/conv\tConv\t8", "exit status 0"):
        assert word in text
    assert "next: qgraph evaluate" in text
    assert main(["--log-file", "run.log", "inspect", str(digits)]) == 0  # before the command as well; it appends
    assert (tmp_path / "run.log").read_text(encoding="utf-8").startswith(text)


def test_a_log_has_the_traceback_and_the_terminal_one_line(tmp_path, capsys):
    assert main(["inspect", "no.onnx", "--log-file", "run.log"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "ERROR   error: no such model file" in text
    assert "Traceback (most recent call last)" in text
    assert "exit status 1" in text


def test_an_error_that_came_of_ctrl_c_is_an_interruption(digits, monkeypatch, capsys):
    def load(path):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("a kernel did not compile")  # noqa: B904

    monkeypatch.setattr("qgraph.onnxfile.load.load", load)
    assert main(["inspect", str(digits)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_log_that_cannot_be_written_is_wrong_usage(digits, capsys):
    assert main(["inspect", str(digits), "--log-file", "no/folder/run.log"]) == 2
    assert "cannot write the log" in capsys.readouterr().err


def test_a_plan_does_not_say_how_much_was_shown(digits, digits_calibration, tmp_path):
    assert quantized(digits, digits_calibration, "--quiet", "--plan", "a.json") == 0
    assert quantized(digits, digits_calibration, "--quiet", "--plan", "b.json", "-v", "--log-file", "x.log") == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
