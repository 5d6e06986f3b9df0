"""--help: options in groups, nothing wider than the terminal, one name for one thing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict

import click
import pytest

from qgraph.cli import COMMANDS, cli, main
from qgraph.cli.help import GROUPS
from qgraph.cli.kinds import FolderText, PathText

OPTIONS = [
    (name, param)
    for name in COMMANDS
    for param in cli.get_command(click.Context(cli), name).params
    if isinstance(param, click.Option)
]
FILES = re.compile(r"\.(onnx|json|html|npz|toml)$|^(PATH|FILE|DIR)$")


def helped(name: str, columns: int) -> str:
    environment = {**os.environ, "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "qgraph", *([name] if name else []), "--help"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", ["", "quantize", "search", "certify"])
def test_help_fits_the_terminal(name, columns):
    text = helped(name, columns)
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    if not name:
        assert "..." not in text.partition("Commands:")[2]  # no cut-off sentences


def test_options_are_in_groups():
    text = helped("quantize", 80)
    titles = re.findall(r"^([A-Z][\w ]+):$", text, re.MULTILINE)
    assert titles == ["Options", "Data", "Grids", "Layers", "Mixed bits", "Judging", "Files", "Running"]
    groups = dict(zip(titles, re.split(r"^[A-Z][\w ]+:$", text, flags=re.MULTILINE)[1:], strict=True))
    for group, name in {"Data": "--mean", "Grids": "--clip", "Layers": "--keep", "Mixed bits": "--size-mb"}.items():
        assert f"  {name} " in groups[group]
    assert "  --log-file " in groups["Running"]
    assert {getattr(param, "group", GROUPS[0]) for _, param in OPTIONS} == set(GROUPS)
    assert all(re.match(r" {2,34}\S", line) for line in text.partition("Options:")[2].splitlines() if line[:1] == " ")


def test_no_line_ends_within_the_name_of_an_option():
    for columns in (60, 66, 72, 80, 90):
        text = helped("quantize", columns)
        assert not re.search(r"\w-$", text, re.MULTILINE)
        assert "\u2011" not in text


def test_examples_are_whole_commands():
    text = helped("quantize", 60).partition("Examples:")[2].partition("Options:")[0]
    joined = [re.sub(r"\s+", " ", line).strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    assert all(line.startswith("qgraph quantize model.onnx -o small.onnx") for line in joined)
    assert "qgraph quantize model.onnx -o small.onnx --weights mixed --size-mb 0.13" in joined


def test_one_name_for_one_thing():
    """Options of the same name read the same kind of value into the same keyword, wherever they are."""
    kinds = defaultdict(set)
    names = defaultdict(set)
    for command, param in OPTIONS:
        name = param.opts[-1]
        choices = tuple(param.type.choices) if isinstance(param.type, click.Choice) else ()
        kind = "integer" if isinstance(param.type, (click.IntRange, type(click.INT))) else type(param.type).__name__
        if name != "--output":
            kinds[name].add((kind, choices))
        names[name].add(command)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert "--search" not in names  # it chose mixed bits in one command and points to measure in another
    assert names["--against"] == {"evaluate", "certify", "adopt"}
    assert names["--network"] == {"adopt", "finetune"}
    assert names["--plan"] == {"quantize", "finetune", "adopt"}  # all write it
    assert names["--calibration"] == {"quantize", "whatif"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quantize", "no.onnx", "-o", "out.onnx", "--search", "groups"], "no such model file"),
        (["quantize", "no.onnx", "-o", "out.onnx", "--search", "bo"], "'bo' is not one of"),
        (["search", "no.onnx", "-o", "plan.json", "--data", "d.npz", "--search", "bo"], "no such model file"),
        (["adopt", "no.onnx", "-o", "out.onnx", "--float", "f.onnx"], "no such model file"),
        (["whatif", "no.onnx", "--statistics", "s.npz", "--set", "*:weights=4"], "no such model file"),
        (["adopt", "no.onnx", "-o", "out.onnx", "--network", "n.onnx", "--float", "f.onnx"], "no such model file"),
    ],
)
def test_former_names_still_work(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) != 0
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_confidence_that_is_none(capsys):
    words = ["certify", "no.onnx", "--against", "float.onnx", "--data", "d.npz", "--claim", "drop<=1"]
    assert main([*words, "--confidence", "x"]) == 2
    assert "is not a share such as" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("text", "share"), [("95", 0.95), ("95%", 0.95), ("0.95", 0.95), ("99.9%", 0.999), ("1", 1.0)])
def test_a_confidence_is_a_share_or_a_percentage(text, share):
    from qgraph.cli.kinds import Share

    assert Share().convert(text, None, None) == pytest.approx(share, rel=1e-12)


def test_all_options_of_files_complete_paths():
    lacking = [
        f"{command} {param.opts[-1]}"
        for command, param in OPTIONS
        if FILES.search(param.metavar or "") and not isinstance(param.type, (PathText, FolderText))
    ]
    assert lacking == ["quantize --recipe", "search --recipe", "finetune --recipe"]  # these complete names of presets
