"""Equalised networks: they compute the same, and lose less."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.cli import main
from qgraph.errors import UsageError
from qgraph.graph.scaling import tied_channels
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.opset import prepare
from qgraph.running.sessions import Session

RNG = np.random.default_rng(15)
DEMO = files("qgraph") / "demo_assets"
HEAD = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y)'


def made(body: str, *shapes: tuple[str, tuple[int, ...]]):
    width = np.exp(RNG.normal(0, 1.5, 64))

    def held(name: str, shape: tuple[int, ...]) -> str:
        values = RNG.normal(size=shape) * width[: shape[0]].reshape(-1, *[1] * (len(shape) - 1))
        numbers = ", ".join(f"{v:.4f}" for v in values.ravel())
        return f"float[{', '.join(map(str, shape))}] {name} = {{{numbers}}}"

    weights = ", ".join(held(*shape) for shape in shapes)
    return ir.from_onnx_text(f"{HEAD} <{weights}> {{ {body} }}")


BOTTLENECKS = (
    "a = Conv(x, w0, b0) b = Conv(a, w1) c = Relu(b) d = Conv<group=6, pads=[1, 1, 1, 1]>(c, w2) e = Relu(d) "
    "f = Conv(e, w3, b3) h = Add(a, f) y = Conv(h, w4)"
)
SHAPES = (
    ("w0", (4, 4, 1, 1)),
    ("b0", (4,)),
    ("w1", (6, 4, 1, 1)),
    ("w2", (6, 1, 3, 3)),
    ("w3", (4, 6, 1, 1)),
    ("b3", (4,)),
    ("w4", (4, 4, 1, 1)),
)


def test_groups_of_a_bottleneck():
    view = GraphView(prepare(made(BOTTLENECKS, *SHAPES)))
    first, second, third, last = tied_channels(view)
    assert [len(group.tensors) for group in (first, second, third)] == [3, 2, 2]
    assert [len(group.writers) for group in (first, second, third)] == [2, 1, 1]
    assert [len(group.readers) for group in (first, second, third)] == [2, 1, 1]
    assert first.shifts
    assert not second.shifts
    assert "output" in last.why_not


@pytest.mark.parametrize("bits", [(4, 4), (8, 4)])
def test_the_equalised_network_computes_the_same_and_loses_less(bits):
    model = made(BOTTLENECKS, *SHAPES)
    samples = RNG.normal(size=(48, 4, 8, 8)).astype(np.float32)
    equal = qgraph.equalise(model, samples, weights=bits[0], activations=bits[1])
    assert len(equal.groups) >= 2
    assert any(group.written for group in equal.groups)
    assert all(group.noise < group.plain_noise for group in equal.groups)
    plain = Session(prepare(model).ir_model).run_list({"x": samples})[0]
    again = Session(equal.ir_model).run_list({"x": samples})[0]
    np.testing.assert_allclose(again, plain, atol=1e-4 * np.abs(plain).max())
    assert not np.array_equal(again, plain)
    options = {"weights": bits[0], "activations": bits[1], "measure": False, "allocate_bits": "none"}
    found = []
    for network in (model, equal):
        small = qgraph.quantize(network, samples, **options).model
        found.append(float(np.square(Session(small).run_list({"x": samples})[0] - plain).sum()))
    assert found[1] < 0.9 * found[0]


def test_what_lies_between_keeps_factors_out():
    body = "a = Conv(x, w0) b = Sigmoid(a) c = Conv(b, w1) d = Mul(c, c) y = Conv(d, w2)"
    view = GraphView(prepare(made(body, *((f"w{i}", (4, 4, 1, 1)) for i in range(3)))))
    assert ["Sigmoid" in group.why_not or "Mul" in group.why_not for group in tied_channels(view)] == [
        True,
        True,
        False,
    ]
    samples = RNG.normal(size=(8, 4, 8, 8)).astype(np.float32)
    equal = qgraph.equalise(view.model.ir_model, samples)
    assert equal.groups == ()
    with pytest.raises(UsageError, match="--weights must be a number from 2 to 8"):
        qgraph.equalise(view.model.ir_model, samples, weights=9)
    with pytest.raises(UsageError, match="equalise reads samples"):
        qgraph.equalise(view.model.ir_model, None)


def test_the_command(tmp_path, capsys):
    out = str(tmp_path / "equal.onnx")
    data = str(DEMO / "digits_calibration.npz")
    assert main(["equalise", str(DEMO / "digits.onnx"), "-o", out, "--data", data, "--limit", "32", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["output"] == out
    assert all(group["noise"] < 1 for group in said["groups"])
    assert main(["evaluate", out, "--data", data, "--against", str(DEMO / "digits.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sqnr_db"] > 80
