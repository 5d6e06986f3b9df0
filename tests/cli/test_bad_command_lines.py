"""Bad input through the real command line: one message, the right exit status, nothing half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

QUANTIZE = ["quantize", "{model}", "-o", "{out}", "--data", "{data}"]
SEARCH = ["search", "{model}", "-o", "{out}", "--data", "{data}"]


def qgraph(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "qgraph", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory, request) -> Path:
    """A folder with good and bad models and data."""
    folder = tmp_path_factory.mktemp("bad")
    from conftest import DEMO

    shutil.copy(DEMO / "digits.onnx", folder / "model.onnx")
    shutil.copy(DEMO / "digits_calibration.npz", folder / "data.npz")
    model = onnx.load(folder / "model.onnx")
    whole = (folder / "model.onnx").read_bytes()
    (folder / "text.onnx").write_text("this is not a model")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    broken = onnx.ModelProto.FromString(whole)
    broken.graph.node[0].input[1] = "nowhere"
    (folder / "dangling.onnx").write_bytes(broken.SerializeToString())
    relu = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    )
    onnx.save(relu, folder / "relu.onnx")
    old = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["": 5]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    )
    onnx.save(old, folder / "old.onnx")
    images = np.zeros((4, 8, 8, 1), np.uint8)
    good = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    bad, infinite = good.copy(), good.copy()
    bad[2, 0, 3, 3] = np.nan
    infinite[1] = np.inf
    np.savez(folder / "nan.npz", images=bad)
    np.savez(folder / "inf.npz", images=infinite)
    np.savez(folder / "shape.npz", images=np.zeros((4, 1, 9, 8), np.float32))
    np.savez(folder / "rank.npz", images=np.zeros((4, 8), np.float32))
    np.savez(folder / "none.npz", images=images[:0])
    np.savez(folder / "strings.npz", images=np.array(["a", "b"]))
    np.savez(folder / "keys.npz", first=images, second=images)
    np.savez(folder / "unlabelled.npz", images=images)
    np.savez(folder / "labels.npz", images=images, labels=np.array([0, 1, 2, 10]))
    np.savez(folder / "short.npz", images=images, labels=np.array([0, 1]))
    (folder / "junk.npz").write_bytes(b"PK\x03\x04 junk")
    (folder / "folder").mkdir()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"no picture")
    (folder / "plan.json").write_text('{"model": "abc", "recipe": "aciq"}')
    (folder / "notes.json").write_text("not json")
    assert model.graph.node
    return folder


CASES = {
    "no such model": (
        ["quantize", "missing.onnx", "-o", "{out}", "--data", "{data}"],
        1,
        "no such model file: missing.onnx",
    ),
    "a folder as model": (["quantize", "folder", "-o", "{out}", "--data", "{data}"], 1, "is a folder"),
    "text as model": (["quantize", "text.onnx", "-o", "{out}", "--data", "{data}"], 1, "text.onnx is not an ONNX"),
    "empty model file": (["quantize", "empty.onnx", "-o", "{out}", "--data", "{data}"], 1, "empty.onnx is not an ONNX"),
    "truncated model": (["quantize", "truncated.onnx", "-o", "{out}", "--data", "{data}"], 1, "truncated"),
    "graph the checker refuses": (
        ["quantize", "dangling.onnx", "-o", "{out}", "--data", "{data}"],
        1,
        "refused by the ONNX checker",
    ),
    "opset too old": (["quantize", "old.onnx", "-o", "{out}", "--data", "{data}"], 1, "opset 5; supported are"),
    "nothing to quantize": (
        ["quantize", "relu.onnx", "-o", "{out}", "--method", "minmax", "--activations", "none"],
        1,
        "no layer to quantize",
    ),
    "no such data": ([*QUANTIZE[:-1], "missing.npz"], 1, "no such data file or folder: missing.npz"),
    "NaN in data": ([*QUANTIZE[:-1], "nan.npz"], 1, "sample 2 of input 'input' has NaN"),
    "inf in data": ([*QUANTIZE[:-1], "inf.npz"], 1, "sample 1 of input 'input'"),
    "wrong shape": (
        [*QUANTIZE[:-1], "shape.npz"],
        1,
        "samples of shape [1, 9, 8] do not fit input 'input' of shape [?, 1, 8, 8]",
    ),
    "wrong rank": ([*QUANTIZE[:-1], "rank.npz"], 1, "do not fit input 'input'"),
    "no samples": ([*QUANTIZE[:-1], "none.npz"], 1, "holds no samples"),
    "text as data": ([*QUANTIZE[:-1], "strings.npz"], 1, "needs numbers"),
    "unknown keys": ([*QUANTIZE[:-1], "keys.npz"], 1, "name the arrays like the inputs"),
    "broken npz": ([*QUANTIZE[:-1], "junk.npz"], 1, "cannot read junk.npz"),
    "empty folder": ([*QUANTIZE[:-1], "folder"], 1, "holds no images"),
    "broken picture": ([*QUANTIZE[:-1], "pictures"], 1, "cannot read the image"),
    "labels of another length": ([*QUANTIZE[:-1], "short.npz"], 1, "2 labels for 4 samples"),
    "std of zero": ([*QUANTIZE, "--std", "0"], 1, "std must be positive"),
    "mean for other channels": ([*QUANTIZE, "--mean", "1,2,3"], 1, "mean has 3 values"),
    "mean that is no number": ([*QUANTIZE, "--mean", "a"], 2, "is not a list of numbers"),
    "output in no folder": (["quantize", "{model}", "-o", "nowhere/out.onnx", "--data", "{data}"], 2, "does not exist"),
    "output is a folder": (["quantize", "{model}", "-o", "folder", "--data", "{data}"], 2, "is a folder"),
    "output is the input": (
        ["quantize", "{model}", "-o", "{model}", "--data", "{data}"],
        2,
        "is the input model itself",
    ),
    "output is the data": (["quantize", "{model}", "-o", "{data}", "--data", "{data}"], 2, "is one of the inputs"),
    "plan of a search is the data": (["search", "{model}", "-o", "{data}", "--data", "{data}"], 2, "one of the inputs"),
    "output is the float model": (
        ["adopt", "folder/../keys.npz", "-o", "{model}", "--against", "{model}"],
        2,
        "is one of the inputs",
    ),
    "certificate is the quantized model": (
        ["certify", "{model}", "--against", "{data}", "--data", "{data}", "--claim", "same>=9", "-o", "{model}"],
        2,
        "is the input model itself",
    ),
    "page is the data": (
        ["certify", "{model}", "--against", "{model}", "--data", "{data}", "--claim", "same>=9", "--page", "{data}"],
        2,
        "is one of the inputs",
    ),
    "recipe is the data": ([*QUANTIZE, "--save-recipe", "{data}"], 2, "is one of the inputs"),
    "recipe is the output": ([*QUANTIZE, "--save-recipe", "{out}"], 2, "both name"),
    "report is a model": (["report", "{model}", "{model}", "-o", "{model}"], 2, "is one of the inputs"),
    "output is the plan": (["apply", "{model}", "keys.npz", "-o", "keys.npz"], 2, "is one of the inputs"),
    "new plan is the old": (
        ["whatif", "{model}", "keys.npz", "--set", "*:weights=4", "-o", "keys.npz"],
        2,
        "is one of the inputs",
    ),
    "table is the data": (["sensitivity", "{model}", "--data", "{data}", "-o", "{data}"], 2, "is one of the inputs"),
    "equal model is the data": (["equalise", "{model}", "--data", "{data}", "-o", "{data}"], 2, "is one of the inputs"),
    "samples are the model": (["distill", "{model}", "-o", "{model}"], 2, "is the input model itself"),
    "plan is the output": ([*QUANTIZE, "--plan", "{out}"], 2, "both name"),
    "unknown layer": ([*QUANTIZE, "--keep", "stem/cnov"], 2, "did you mean stem/conv"),
    "too many bits": ([*QUANTIZE, "--weights", "9"], 2, "2 to 8"),
    "nothing left to do": ([*QUANTIZE, "--weights", "none", "--activations", "none"], 2, "nothing to quantize"),
    "unknown method": ([*QUANTIZE, "--method", "magic"], 2, "unknown method 'magic'"),
    "unknown rounding": ([*QUANTIZE, "--rounding", "stochastic"], 2, "nearest, second-order, qrater"),
    "search without data": (["search", "{model}", "-o", "p.json"], 2, "--data"),
    "unknown ingredient": ([*SEARCH, "--ingredients", "clip,salt"], 2, "clip, round, bias"),
    "confidence of certainty": ([*SEARCH, "--confidence", "1"], 2, "0.5 < confidence < 1"),
    "first layer of a deployable plan": ([*SEARCH, "--first-layer-bits", "4"], 2, "--edge-bits"),
    "accuracy without labels": ([*SEARCH, "--data", "unlabelled.npz", "--objective", "accuracy"], 1, "needs labels"),
    "unknown clip": ([*QUANTIZE, "--clip", "magic"], 2, "unknown clip method 'magic'"),
    "unknown format": ([*QUANTIZE, "--format", "int"], 2, "'int' is not one of"),
    "unknown command": (["quantise"], 2, "No such command"),
    "activations without data": (
        ["quantize", "{model}", "-o", "{out}", "--method", "aciq"],
        2,
        "needs data to quantize activations",
    ),
    "opset lowered": ([*QUANTIZE, "--opset", "12"], 2, "can be raised up to"),
    "plan for another model": (["apply", "{model}", "plan.json", "-o", "{out}"], 1, "made for another model"),
    "plan that is no plan": (["apply", "{model}", "notes.json", "-o", "{out}"], 1, "notes.json is not JSON"),
    "no such plan": (["apply", "{model}", "missing.json", "-o", "{out}"], 1, "cannot read the plan"),
    "calibration that is none": ([*QUANTIZE, "--calibration", "plan.json"], 1, "is not a calibration file"),
    "nothing to evaluate": (["evaluate", "{model}", "--data", "unlabelled.npz"], 1, "has no labels"),
    "labels out of range": (
        ["evaluate", "{model}", "--data", "labels.npz"],
        1,
        "labels must be whole numbers from 0 to 9",
    ),
    "another network": (
        ["evaluate", "{model}", "--data", "{data}", "--against", "relu.onnx"],
        1,
        "not the same network",
    ),
    "one model to compare": (["compare", "{model}", "--data", "{data}"], 2, "at least one other"),
    "nothing to compare": (["compare", "{model}", "relu.onnx", "--data", "{data}"], 2, "no layer result in common"),
}


@pytest.mark.parametrize(("arguments", "status", "message"), CASES.values(), ids=CASES)
def test_bad_input_ends_in_one_message(place, arguments, status, message):
    names = {"model": "model.onnx", "data": "data.npz", "out": "out.onnx"}
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    done = qgraph(*(a.format(**names) for a in arguments), cwd=place)
    after = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    assert message in done.stderr, done.stderr
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert after == before


def test_unwritable_folder(place):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    locked = place / "locked"
    locked.mkdir(mode=0o500)
    done = qgraph("quantize", "model.onnx", "-o", "locked/out.onnx", "--data", "data.npz", cwd=place)
    assert done.returncode == 1
    assert "permission denied" in done.stderr
