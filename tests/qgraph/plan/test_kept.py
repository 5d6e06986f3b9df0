"""Every constant that stays in floating point is listed, with its bytes and the reason."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import qgraph
from qgraph.cli import main

HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('
TEXTS = {
    "LSTM": (
        "float[6,N,32] x, float[1,256,32] w, float[1,256,64] r, float[1,512] b, int64[1] ax, float[64,4] v)"
        " => (float[6,N,4] y) { o = LSTM<hidden_size=64>(x, w, r, b) s = Squeeze(o, ax) y = MatMul(s, v) }",
        {"b": (1, 512)},
    ),
    "Einsum": (
        "float[N,64] x, float[64,64] w, float[64,4] v) => (float[N,64,4] y) {"
        ' h = Einsum<equation="bi,ij->bij">(x, w) r = Relu(h) y = MatMul(r, v) }',
        {"w": (64, 64)},
    ),
    "Gather": (
        "int64[N,6] x, float[64,100] w, float[64,4] v) => (float[N,6,4] y) {"
        " e = Gather<axis=1>(w, x) t = Transpose<perm=[1,2,0]>(e) y = MatMul(t, v) }",
        {"w": (64, 100)},
    ),
    "If": (
        "float[N,64] x, bool c, float[64,64] w, float[64,4] v) => (float[N,4] y) {"
        ' h = If(c) <then_branch = a () => (float[N,64] t) { u = Einsum<equation="bi,ii->bi">(x, w) t = Relu(u) },'
        " else_branch = b () => (float[N,64] e) { e = Identity(x) }> r = Relu(h) y = MatMul(r, v) }",
        {"w": (64, 64)},
    ),
}
WHY = {"LSTM": "recurrent", "Einsum": "Einsum", "Gather": "lookup", "If": "Einsum"}


@pytest.fixture(params=TEXTS)
def case(request, model_from_text):
    text, shapes = TEXTS[request.param]
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    others = {"ax": np.array([1])} if "ax" in text else {}
    if "b" in shapes:
        others |= {"w": rng.normal(0, 0.1, (1, 256, 32)), "r": rng.normal(0, 0.1, (1, 256, 64))}
        others = {name: array if name == "ax" else array.astype(np.float32) for name, array in others.items()}
    model = model_from_text(HEAD + text, **weights, v=rng.normal(0, 0.1, (64, 4)).astype(np.float32), **others)
    feeds = {
        "LSTM": {"x": rng.normal(size=(6, 16, 32)).astype(np.float32)},
        "Gather": {"x": rng.integers(0, 100, (16, 6))},
        "If": {"x": rng.normal(size=(16, 64)).astype(np.float32), "c": np.array(True)},
    }.get(request.param, {"x": rng.normal(size=(16, 64)).astype(np.float32)})
    return request.param, model, feeds, sum(array.nbytes for array in weights.values())


def test_quantize_lists_constants_with_bytes_and_reason(case):
    op, model, _, nbytes = case
    result = qgraph.quantize(model, weights=8, activations=None)
    (entry,) = [kept for kept in result.plan.kept_float if kept.bytes]
    assert entry.bytes == nbytes
    assert WHY[op] in entry.why
    assert {"name": entry.name, "why": entry.why, "bytes": nbytes} in result.to_dict()["kept_float"]


def test_inspect_lists_them(case, tmp_path, capsys):
    _, model, _, nbytes = case
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx"), "--json"]) == 0
    (entry,) = [kept for kept in json.loads(capsys.readouterr().out)["kept_float"] if kept["bytes"]]
    assert entry["bytes"] == nbytes
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    assert f"{nbytes:,}" in " ".join(capsys.readouterr().out.split())
