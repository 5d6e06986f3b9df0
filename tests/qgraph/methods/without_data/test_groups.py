"""Without samples, weights that wide grids leave noisy get steps for groups of inputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

import qgraph
from qgraph.graph.sites import GraphView
from qgraph.methods.without_data.groups import ENOUGH, EXTRA, with_groups_for_noisy_weights
from qgraph.methods.without_data.widths import relative_noise
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session

SHAPES = {"smooth": (512, 64, 1, 1), "outliers": (64, 512, 1, 1), "shared": (64, 64, 1, 1)}


def network(*, outlier: float = 30.0) -> onnx.ModelProto:
    """Four convolutions, two of which read one weight; another weight has a few large values."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1, 64, 4, 4] x) => (float[1, 64, 4, 4] y) {
        a = Conv(x, smooth)
        b = Conv(a, outliers)
        c = Conv(b, shared)
        y = Conv(c, shared)
    }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        weight = rng.uniform(-0.2, 0.2, shape).astype(np.float32)
        if name == "outliers":
            weight[:, 5] *= outlier
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


def started(model: onnx.ModelProto, **options: object):
    view = GraphView(normalise(load(model)))
    return view, initial_plan(view, choose_recipe("zeroq", False, weights=8, activations=None, **options), None)


def noises(view: GraphView, plan) -> dict[str, float]:
    return {q.name: relative_noise(q, view.by_name[q.name], None) for q in plan.layers}


def test_the_noisiest_weights_get_groups_until_the_sum_is_low(monkeypatch: pytest.MonkeyPatch) -> None:
    view, plan = started(network())
    before = noises(view, plan)
    assert sum(before.values()) > ENOUGH
    better = with_groups_for_noisy_weights(plan, view, {})
    groups = {view.by_name[q.name].weight.name: q.weight.granularity.group for q in better.layers}
    assert groups == {"smooth": None, "outliers": 32, "shared": None}
    assert sum(noises(view, better).values()) < ENOUGH
    assert "1 layers have steps for groups of inputs" in better.notes[-1]
    monkeypatch.setattr("qgraph.methods.without_data.groups.ENOUGH", 0.0)
    spent = with_groups_for_noisy_weights(plan, view, {})
    shared = {q.weight for q in spent.layers if view.by_name[q.name].weight.name == "shared"}
    assert len(shared) == 1  # one grid, so that the file holds it once
    assert float(spent.notes[-1].split(": ")[1].split()[0]) <= EXTRA


def test_quiet_weights_stay_as_they_are() -> None:
    view, plan = started(network(outlier=1.0))
    assert with_groups_for_noisy_weights(plan, view, {}) == plan


def test_groups_and_channels_that_were_asked_for_stay() -> None:
    model = network()
    given = {"weights": 8, "activations": None, "measure": False}
    assert any(q.weight.unit for q in qgraph.quantize(model, **given).plan.layers)
    for asked in ({"group": "none"}, {"per_channel": False}, {"allocate_bits": "none"}):
        assert not any(q.weight.unit for q in qgraph.quantize(model, **given, **asked).plan.layers)


def test_the_file_computes_what_the_plan_says() -> None:
    model = network()
    result = qgraph.quantize(model, weights=8, activations=None, measure=False)
    plain = qgraph.quantize(model, weights=8, activations=None, measure=False, group="none")
    x = {"x": np.random.default_rng(1).normal(size=(1, 64, 4, 4)).astype(np.float32)}
    want, fine, coarse = (Session(m).run_list(x)[0] for m in (model.SerializeToString(), result.model, plain.model))
    assert np.square(want - coarse).sum() > 4 * np.square(want - fine).sum()
    assert result.nbytes < 1.13 * plain.nbytes
    assert dataclasses.replace(result.plan, notes=()) != dataclasses.replace(plain.plan, notes=())
