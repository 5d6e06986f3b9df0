"""Sensitivity: what the shortcut of cutting the graph computes is what running the whole model would."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sqlite3

import numpy as np
import onnx_ir as ir
import pytest

import qmath
from qgraph.errors import ModelError, StoreError
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.zeroq.sensitivity import sensitivity
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan
from qgraph.plan.request import choose_recipe
from qgraph.running.executor import open_executor
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

BITS = (2, 4, 8)


def menu_of(net: Model, bits=BITS) -> dict[str, list]:
    menu: dict[str, list] = {}
    for k in bits:
        recipe = choose_recipe("minmax", True, weights=k, activations=None, edge_bits=k)
        for layer in initial_plan(GraphView(net), recipe, None).layers:
            menu.setdefault(layer.name, []).append(layer)
    return menu


@pytest.fixture(scope="module")
def net(digits):
    return normalise(load(digits))


@pytest.fixture(scope="module")
def data(net, digits_calibration):
    return open_data(str(digits_calibration), net, limit=40)


@pytest.fixture(scope="module")
def measured(net, data):
    return sensitivity(net, data, menu_of(net))


def whole_model(net, data, choice) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the float model, and of the whole model with one layer quantized."""
    twin = simulate(net, QuantPlan(model=net.digest, recipe="", layers=(choice,)))
    batches = list(data.batches(32))
    pair = []
    for model in (net.ir_model, twin):
        session = Session(model, threads=1)
        pair.append(np.concatenate([session.run_list(batch.feeds)[0] for batch in batches]))
    return pair[0], pair[1]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_cutting_the_graph_changes_nothing(net, data, direction):
    menu = menu_of(net)
    table = sensitivity(net, data, menu, direction=direction)
    assert table.samples == 40
    assert [row.name for row in table.layers] == [layer.name for layer in GraphView(net).layers]
    for row in table.layers:
        for omega, choice in zip(row.measured, menu[row.name], strict=True):
            expected, produced = whole_model(net, data, choice)
            pair = (expected, produced) if direction == "forward" else (produced, expected)
            assert omega == pytest.approx(float(qmath.kl_divergence(*pair, mean=True)), rel=1e-4, abs=1e-9)


def test_more_bits_hurt_less(measured):
    for row in measured.layers:
        assert row.bits == BITS
        assert row.measured[0] > row.measured[1] > row.measured[2] >= 0
        assert row.nbytes == tuple(k * -(-row.weights // 8) for k in BITS)


def test_threads_and_clusters_give_the_same(net, data, measured, cluster):
    assert sensitivity(net, data, menu_of(net), threads=1) == measured
    with open_executor(cluster) as executor:
        assert sensitivity(net, data, menu_of(net), executor=executor) == measured


def test_a_journal_is_continued_to_the_same_result(net, data, measured, tmp_path):
    menu = menu_of(net)
    assert sensitivity(net, data, menu, resume=tmp_path) == measured
    with sqlite3.connect(tmp_path / "checkpoints.sqlite") as file:
        file.execute("DELETE FROM pieces WHERE key IN (SELECT key FROM pieces LIMIT 4)")
    file.close()
    assert sensitivity(net, data, menu, resume=tmp_path) == measured
    with pytest.raises(StoreError, match="of its sensitivity, the choices is"):
        sensitivity(net, data, menu_of(net, (2, 3)), resume=tmp_path)


def test_journalled_layers_are_not_measured_again(net, data, measured, tmp_path, monkeypatch):
    menu = menu_of(net)
    sensitivity(net, data, menu, resume=tmp_path)
    monkeypatch.setattr(
        "qgraph.methods.zeroq.sensitivity._omega", lambda job, name: pytest.fail(f"{name} was measured again")
    )
    assert sensitivity(net, data, menu, resume=tmp_path) == measured


TWO_OUTPUTS = """
<ir_version: 8, opset_import: ["" : 13]>
two (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] map, float[N, 5] scores)
<float[4,3,3,3] w, float[4,5] v, float[4,4,1,1] u>
{
  h = Conv<pads = [1, 1, 1, 1]>(x, w)
  r = Relu(h)
  side = Conv(r, u)
  map = Add(side, r)
  p = GlobalAveragePool(r)
  f = Flatten(p)
  scores = MatMul(f, v)
}
"""


def two_outputs(model_from_text, rng, v=None):
    weights = {"w": (4, 3, 3, 3), "v": (4, 5), "u": (4, 4, 1, 1)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    return normalise(load(model_from_text(TWO_OUTPUTS, **{**arrays, **({} if v is None else {"v": v})})))


def test_every_output_counts_by_its_own_measure(model_from_text):
    rng = np.random.default_rng(0)
    net = two_outputs(model_from_text, rng)
    samples = rng.standard_normal((20, 3, 6, 6)).astype(np.float32)
    data, menu = open_data(samples, net), menu_of(net, (3, 6))
    table = sensitivity(net, data, menu)
    assert dict(table.outputs) == {"map": "nse", "scores": "kl"}
    assert json.loads(table.to_json())["outputs"] == {"map": "nse", "scores": "kl"}
    plain = Session(net.ir_model).run({"x": samples})
    for row in table.layers:
        for omega, choice in zip(row.measured, menu[row.name], strict=True):
            other = Session(simulate(net, QuantPlan(model=net.digest, recipe="", layers=(choice,)))).run({"x": samples})
            wrong = np.sum((plain["map"] - other["map"]) ** 2.0) / np.sum(plain["map"] ** 2.0)
            kl = float(qmath.kl_divergence(plain["scores"], other["scores"], mean=True))
            assert omega == pytest.approx(float(wrong) + kl, rel=1e-4, abs=1e-9)


def test_a_layer_that_breaks_the_outputs_is_named(model_from_text):
    rng = np.random.default_rng(0)
    net = two_outputs(model_from_text, rng)
    menu = menu_of(net, (4,))
    name = next(layer.name for layer in GraphView(net).layers if layer.op == "MatMul")
    menu[name] = [dataclasses.replace(menu[name][0], bias_shift=(np.inf,) * 5)]
    data = open_data(rng.standard_normal((4, 3, 6, 6)).astype(np.float32), net)
    with pytest.raises(ModelError, match=f"'{name}' alone has 4-bit weights"):
        sensitivity(net, data, menu)


def test_a_float_model_that_is_broken_is_said_so(net, data):
    weights = [v for v in net.graph.initializers.values() if v.const_value.numpy().ndim == 4]
    broken = pickle.loads(pickle.dumps(net))
    value = broken.graph.initializers[weights[-1].name]
    value.const_value = ir.tensor(np.full(value.shape.numpy(), 3e38, np.float32))
    with pytest.raises(ModelError, match="NaN or infinite values in its output"):
        sensitivity(broken, data, menu_of(net))


def test_a_cut_at_a_tensor_of_unknown_type():
    """Shape inference does not know every operator, and a graph that begins behind one needs the type of its inputs."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
    net (float[N, 16] x, float[16, 16] w, float[16, 8] v) => (float[N, 8] y) {
        h = MatMul(x, w)
        g = com.microsoft.QuickGelu(h)
        y = MatMul(g, v)
    }"""
    model = ir.from_onnx_text(text)
    for name, shape in (("w", (16, 16)), ("v", (16, 8))):
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(rng.normal(size=shape).astype(np.float32), name=name)
        model.graph.register_initializer(value)
    net = normalise(load(model))
    assert next(v for node in net.graph for v in node.outputs if v.name == "g").type is None
    table = sensitivity(net, open_data(rng.normal(size=(8, 16)).astype(np.float32), net), menu_of(net))
    assert [row.name for row in table.layers] == ["MatMul_h", "MatMul_y"]
