"""Few bits beside another tool: rows by a fake tool, so that the real one need not be installed."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from benchmarks import bits4_peers
from benchmarks.bits4 import Case
from benchmarks.bits4_peers import MAKERS, Made, jobs, maker, measured, merged
from qgraph.samples.preprocessing import Preprocessing
from tests.conftest import DEMO


@pytest.fixture
def case(monkeypatch):
    """The packaged network of digits, 64 samples without labels and 200 with them."""
    monkeypatch.setattr(bits4_peers, "CIFAR", Preprocessing())
    with np.load(DEMO / "digits_test.npz") as archive:
        test = {key: archive[key][:200] for key in archive.files}
    with np.load(DEMO / "digits_calibration.npz") as archive:
        samples = next(archive[key][:64] for key in archive.files if archive[key].ndim == 4)
    assert "labels" in test
    return Case(name="resnet20", model=DEMO / "digits.onnx", calibration=samples, test=test)


@pytest.fixture
def tools(monkeypatch):
    """The tools, to which a test may add some."""
    monkeypatch.setattr(bits4_peers, "MAKERS", dict(MAKERS))
    return bits4_peers.MAKERS


def put(tools, name, job):
    tools[name] = ("W4A8",), job


def test_a_file_is_judged_against_float_on_the_same_images(case, tools):
    put(tools, "float", lambda case, setting: Made(case.model.read_bytes(), 0, 7, "as it is"))
    row = measured(case, "W4A8", "float")
    assert (row["drop"], row["images"], row["note"]) == (0, 200, "as it is")
    assert row["dB"] is None or row["dB"] > 100
    assert row["bytes"] == case.model.stat().st_size
    assert row["4-bit layers"] == "0 of 7"


def test_ours_has_4_bits_in_all_layers_but_the_edges(case):
    row, everywhere = (measured(case, "W4A8", tool) for tool in ("qgraph", "qgraph, all layers"))
    narrow, layers = map(int, row["4-bit layers"].split(" of "))
    assert narrow == layers - 2
    assert everywhere["4-bit layers"] == f"{layers} of {layers}"
    assert 5 < row["dB"] < 40
    assert row["bytes"] < case.model.stat().st_size
    assert row["CPU s"] > 0


@pytest.mark.parametrize(
    ("error", "word"), [(ValueError, "refuses"), (NotImplementedError, "refuses"), (KeyError, "fails")]
)
def test_a_tool_that_refuses_or_fails_leaves_a_word(case, tools, error, word):
    def job(case, setting):
        raise error("no such bits")

    put(tools, "other", job)
    row = measured(case, "W4A8", "other")
    assert (row["note"], row["drop"], row["4-bit layers"]) == (word, None, "-")


def test_a_file_that_onnxruntime_does_not_load_is_marked(case, tools):
    put(tools, "other", lambda case, setting: Made(b"no network", 0, 7))
    assert measured(case, "W4A8", "other")["note"] == "does not load"


def test_onnxsim_is_asked_for_where_it_is_missing(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    with pytest.raises(SystemExit, match="pip install onnxsim"):
        measured(case, "W4A8", "onnxsim GPTQ")


def test_a_stopped_run_goes_on_and_a_new_row_replaces_its_elder(case):
    row = {"network": "resnet20", "setting": "W4A8", "tool": "qgraph", "images": 200, "drop": 1.0}
    left = list(jobs(case, ["W4A8"], [row]))
    assert ("W4A8", "qgraph") not in left
    assert ("W4A8", "onnxsim GPTQ") in left
    assert ("W4A8", "qgraph") in list(jobs(case, ["W4A8"], [row | {"images": 100}]))
    other = row | {"setting": "W4"}
    assert merged([row, other], row | {"drop": 2.0}) == [other, row | {"drop": 2.0}]


def test_rows_are_kept_as_they_are_measured(case, tools, monkeypatch, tmp_path, capsys):
    tools.clear()
    put(tools, "first", lambda case, setting: Made(case.model.read_bytes(), 0, 7))
    put(tools, "second", lambda case, setting: sys.exit("stopped"))
    monkeypatch.setattr(Case, "cifar", lambda name, count: case)
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["bits4_peers", "--model", "resnet20", "--json", str(path)])
    with pytest.raises(SystemExit, match="stopped"):
        bits4_peers.main()
    assert [row["tool"] for row in json.loads(path.read_text())["rows"]] == ["first"]
    tools["first"] = ("W4A8",), lambda case, setting: pytest.fail("measured again")
    put(tools, "second", lambda case, setting: Made(case.model.read_bytes(), 0, 7))
    bits4_peers.main()
    assert [row["tool"] for row in json.loads(path.read_text())["rows"]] == ["first", "second"]
    assert "second" in capsys.readouterr().out


def test_constants_that_are_others_are_counted():
    """Two packed layers of three, of which one was rounded anew."""
    four = {n: helper.make_tensor(n, TensorProto.INT4, [1, 2], [0, 3]) for n in "vw"}
    nodes = [helper.make_node("MatMul", [x, w], [y]) for x, w, y in ("xva", "awb", "buc")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xc"]
    before = helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], list(four.values())))
    after = copy.deepcopy(before)
    after.graph.initializer[1].CopyFrom(helper.make_tensor("w", TensorProto.INT4, [1, 2], [1, 3]))
    made = bits4_peers._rewritten(before, after)
    assert (made.narrow, made.layers, made.note) == (2, 3, "1 layer rounded")
    assert bits4_peers._rewritten(before, before).note == "0 layers rounded"


def test_tools_register_for_their_settings(tools):
    job = maker("new", "W4A4")(lambda case, setting: Made(b"", 0, 0))
    assert tools["new"] == (("W4A4",), job)
