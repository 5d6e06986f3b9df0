"""Commands in a real terminal of 60, 80 and 120 columns."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys

import pytest

from qgraph.cli import main

pty = pytest.importorskip("pty", reason="pseudo terminals are for POSIX")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def typed(columns: int, *arguments: str, cwd: os.PathLike[str]) -> list[str]:
    """The lines that a command leaves on a terminal of so many columns."""
    import fcntl
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    unset = ("COLUMNS", "LINES", "NO_COLOR", "CI")
    environment = {k: v for k, v in os.environ.items() if k not in unset} | {"TERM": "xterm-256color"}
    command = [sys.executable, "-m", "qgraph", *arguments]
    done = subprocess.Popen(command, cwd=cwd, env=environment, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    text = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    os.close(leader)
    assert done.wait(timeout=60) == 0, text.decode()
    lines = ESCAPES.sub("", text.decode()).replace("\r\n", "\n").split("\n")
    return [line.rpartition("\r")[2].rstrip() for line in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits, digits_calibration):
    """The demo's network, and it quantized to 4 bits."""
    import shutil

    place = tmp_path_factory.mktemp("terminal")
    shutil.copy(digits, place / "digits.onnx")
    shutil.copy(digits_calibration, place / "data.npz")
    made = ["quantize", str(place / "digits.onnx"), "-o", str(place / "small4.onnx"), "--weights", "4"]
    made += ["--data", str(place / "data.npz"), "--plan", str(place / "plan.json"), "--quiet", "--limit", "128"]
    assert main(made) == 0
    return place


COMMANDS = {
    "quantize": ["quantize", "digits.onnx", "-o", "out.onnx", "--data", "data.npz", "--limit", "64", "--no-measure"],
    "inspect": ["inspect", "small4.onnx"],
    "sensitivity": ["sensitivity", "digits.onnx", "--data", "data.npz", "--limit", "16", "-v"],
    "evaluate": ["evaluate", "small4.onnx", "--against", "digits.onnx", "--data", "data.npz", "--limit", "64"],
    "whatif": ["whatif", "digits.onnx", "plan.json", "--set", "*second*:weights=3"],
}


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_nothing_is_wider_than_the_terminal(folder, columns, words):
    lines = typed(columns, *words, cwd=folder)
    wide = [line for line in lines if len(line) > columns]
    assert all(line.startswith("next: qgraph ") or " s  qgraph " in line for line in wide)  # whole, to be copied
    assert any(line.startswith("next: qgraph ") for line in lines)


def test_the_layers_of_an_own_file_are_integer_with_their_bits(folder, capsys):
    text = "\n".join(typed(60, "inspect", "small4.onnx", cwd=folder))
    rows = dict(re.findall(r"^(\S+) +(?:Conv|Gemm) +(integer +\d +\d)$", text, re.MULTILINE))
    assert len(rows) == 7
    assert [" ".join(row.split()) for row in rows.values()] == ["integer 8 8", *["integer 4 8"] * 5, "integer 8 8"]
    assert "not a constant" not in text
    assert main(["inspect", str(folder / "digits.onnx")]) == 0
    assert "integer" not in capsys.readouterr().out


def test_sensitivities_are_in_one_unit_and_in_numbers_that_people_read(folder):
    lines = typed(80, *COMMANDS["sensitivity"][:-1], cwd=folder)
    start = next(i for i, line in enumerate(lines) if line.startswith("sensitivity of digits.onnx"))
    assert re.search(r", 1e-?\d+ nats: KL divergence of logits", lines[start])
    rows = [line.split() for line in lines if re.match(r"\S+ +[\d,]+( +[<\d.]+){3}$", line)]
    assert len(rows) == 7
    cells = [cell for row in rows for cell in row[2:]]
    assert all(re.fullmatch(r"<0\.01|\d\.\d\d|\d\d\.\d|\d{3}", cell) for cell in cells)
    assert max(float(cell) for cell in cells if cell[0] != "<") >= 1


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "small4.onnx", "--portable"],
        ["inspect", "small4.onnx", "--fused"],
        ["compare", "digits.onnx", "small4.onnx", "--data", "data.npz", "--limit", "32"],
        ["report", "digits.onnx", "small4.onnx", "--data", "data.npz", "--limit", "32", "-o", "r.html"],
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_the_other_commands_print_what_they_found(folder, words, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    sentences = ("next: ", "* prior", "r.html", "may round", "7 of 7", "warning: this CPU")
    tables = [line for line in lines if not line.startswith(sentences)]
    assert max(map(len, tables), default=0) <= 60
    assert any(name in line for name in ("residual/second/conv", "r.html") for line in lines)


def test_a_next_step_reads_samples_in_the_same_way(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = ["evaluate", "small4.onnx", "--against", "digits.onnx", "--data", "data.npz", "--limit", "32"]
    assert main([*words, "--mean", "0.01", "--std=0.9"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    step = "next: qgraph compare digits.onnx small4.onnx --data data.npz --mean 0.01 --std=0.9"
    assert last.partition("  (")[0] == step
