"""Tables fit the terminal; names keep their difference; what is folded is said."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qgraph.cli.console import show
from qgraph.cli.tables import SHOWN, Table
from qgraph.running.names import GAP, shortened

SCOPE = "StatefulPartitionedCall/mobilenetv2_1.00_224"
NAMES = [f"{SCOPE}/block_{i}_{part}/Conv2D__{90 + i}" for i in range(1, 17) for part in ("expand", "project")]


def printed(table: Table, width: int | None, *, whole: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width or 1000, legacy_windows=False)
    for part in table.lay_out(width, whole=whole):
        console.print(part, crop=False)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def layers(count: int, *, heaviest: str = "") -> Table:
    columns = ("layer", "op", "weights", "activations", "predicted dB", "measured dB")
    rows = Table(title="layers", columns=columns, left=2, heaviest=heaviest)
    for index in range(count):
        name = f"{SCOPE}/block_{index}_expand/Conv2D"
        rows.add_row(name, "Conv", "8", "8 *", "44.5", f"{index}.0", weight=-float(index % 50))
    return rows


@given(st.lists(st.text("ab/_1", min_size=1, max_size=40), unique=True, max_size=12), st.integers(1, 50))
def test_different_names_stay_different(names, width):
    short = shortened(names, width)
    assert list(short) == names
    assert len(set(short.values())) == len(names)
    assert all(len(text) <= len(name) for name, text in short.items())
    assert all(text == name for name, text in short.items() if len(name) <= width)


@pytest.mark.parametrize("width", [20, 24, 32])
def test_names_of_converted_models_lose_their_middle(width):
    short = shortened(NAMES, width)
    assert max(map(len, short.values())) <= width
    for name, text in short.items():
        head, _, tail = text.partition(GAP)
        assert name.startswith(head)
        assert name.endswith(tail)
    assert {text.partition(GAP)[2].rpartition("__")[2] for text in short.values()} == {
        f"{90 + i}" for i in range(1, 17)
    }


def test_names_that_end_alike_show_where_they_differ():
    short = shortened([f"{SCOPE}/block_{i}_depthwise/depthwise_conv2d" for i in range(1, 17)], 12)
    assert short[f"{SCOPE}/block_7_depthwise/depthwise_conv2d"] == "…block_7_de…"
    assert max(map(len, short.values())) == 12


def test_names_that_differ_in_two_places_show_both():
    parts = ("attention/self/query", "attention/self/key", "attention/output/dense", "output/dense")
    names = [f"/bert/encoder/layer.{i}/{part}/MatMul" for i in range(12) for part in parts]
    short = shortened(names, 24)
    assert max(map(len, short.values())) <= 24
    assert short["/bert/encoder/layer.7/attention/self/query/MatMul"] == "…layer.7…self/query…"


def test_a_column_without_words_is_no_error():
    rows = Table(title="layers", columns=("layer", "op", ""), left=3)
    rows.add_row("a" * 50, "Conv", "")
    assert max(map(len, printed(rows, 40))) <= 40


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_table_fits_the_terminal_and_wraps_headers_at_words(width):
    lines = printed(layers(20), width)
    assert max(map(len, lines)) <= width
    rows = lines[lines.index(next(line for line in lines if line.startswith("─"))) + 1 :]
    assert len(rows) == 20  # one line each
    heads = " ".join(lines[1 : len(lines) - 21]).split()
    assert sorted(heads) == sorted(["layer", "op", "weights", "activations", "predicted", "dB", "measured", "dB"])


def test_files_and_pipes_get_whole_names():
    lines = printed(layers(3), None)
    assert [line for line in lines if f"{SCOPE}/block_2_expand/Conv2D" in line]


def test_rows_beyond_forty_fold_and_the_worst_stay():
    table = layers(100, heaviest="those of the largest errors")
    lines = printed(table, 120)
    rows = [line for line in lines if "Conv2D" in line]
    assert len(rows) == SHOWN == 40
    assert lines[-1] == "40 of 100 rows, those of the largest errors; -v shows all"
    shown = [int(row.split()[-1].removesuffix(".0")) for row in rows]
    assert shown == sorted(shown)  # in the order of the model
    assert {index % 50 for index in shown} == set(range(20))
    assert len([line for line in printed(table, 120, whole=True) if "Conv2D" in line]) == 100
    assert "rows" not in printed(layers(40), 120)[-1]


def test_sentences_wrap_and_leave_names_readable():
    rows = Table(title="kept in floating point", columns=("layer", "why", "bytes"), left=2)
    rows.add_row(f"{SCOPE}/head/LayerNorm", "onnxruntime has no integer kernel for LayerNormalization", "1,024")
    lines = printed(rows, 60)
    assert max(map(len, lines)) <= 60
    assert "LayerNorm" in lines[3]
    assert "1,024" in lines[3]
    words = " ".join(lines[3:]).split()
    assert {"onnxruntime", "integer", "LayerNormalization"} <= set(words)


def test_headers_take_the_room_that_is_left():
    rows = Table(title="sums", columns=("layer", "least sum", "greatest sum", "why codes may differ"), text=(3,))
    for name in ("residual/second/conv", "classifier"):
        rows.add_row(name, "-449,952", "438,082", "")
    lines = printed(rows, 60)
    assert lines[3].startswith("─")  # two lines of headers would do, and do
    assert {"least sum", "greatest sum"} <= set(re.split(r"  +", lines[2]))


def test_a_pipe_is_as_wide_as_it_needs(monkeypatch, capsys):
    """rich takes 80 characters where there is no terminal: headers came out letter by letter."""
    monkeypatch.delenv("COLUMNS", raising=False)
    rows = Table(title="kept in floating point", columns=("layer", "why", "bytes"), left=2)
    rows.add_row("c22", "a convolution in 4 groups of 4 would be at least 1.4 times slower on integers " * 2, "0")
    show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["layer", "why", "bytes"]
    assert len(lines) == 4
