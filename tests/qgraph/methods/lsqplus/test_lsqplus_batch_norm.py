"""BatchNormalization kept while training: what the graph computes, where it starts, and that it folds."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

import qgraph
from qgraph.errors import UsageError
from qgraph.gradient import append, gradients, op, tensor
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.lsqplus.batch_norm import EPSILON, normalise_results
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.initialise import initialise
from qgraph.methods.lsqplus.parameters import absorb
from qgraph.methods.lsqplus.statistics import with_statistics
from qgraph.methods.lsqplus.trained import Trained
from qgraph.observe.statistics import observe
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset, open_data

QUICK = LsqPlusConfig(epochs=2, batch=16, shard=8, holdout=0.25, rate=5e-3, keep_bn=True)
NET = """<ir_version: 8, opset_import: ["": 18]> m (float[N, 3, 6, 6] x) => (float[N, 5] y)
    <float[4, 3, 3, 3] w, float[4] b, float[5, 4, 1, 1] v, float[5] c, int64[2] axes = {2, 3}>
    { [first] h = Conv(x, w, b) r = Relu(h) [second] z = Conv(r, v, c) y = ReduceMean<keepdims = 0>(z, axes) }"""


@pytest.fixture
def net(model_from_text) -> Model:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4, 1, 1), "c": (5,)}
    return prepare(model_from_text(NET, **{n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}))


@pytest.fixture
def samples(net: Model) -> Dataset:
    return open_data(np.random.default_rng(1).normal(size=(64, 3, 6, 6)).astype(np.float32), net)


def _absorbed(net: Model, data: Dataset, batch_norms: list[str], **overrides: object) -> Trained:
    view, observed = GraphView(net), observe(net, data)
    recipe = choose_recipe("lsqplus", True, weights=4, activations=4, **overrides)
    plan = initialise(initial_plan(view, recipe, observed), view, observed, config=QUICK)
    return absorb(net, plan, QUICK, batch_norms)


def test_the_graph_normalises_by_the_batch() -> None:
    """Forward, statistics, and the gradient of z: zero along 1 and along z, as that of whatever is normalised."""
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> m (float[4, 3, 5, 5] x, float[4, 3, 5, 5] g) => (float[4, 3, 5, 5] y) '
        "{ [conv] z = Identity(x) y = Identity(z) }"
    )
    ShapeInferencePass()(model)
    statistics = normalise_results(model, ["conv"])
    values = ir.convenience.create_value_mapping(model.graph)
    append(model, op.ReduceSum(tensor(values["y"]) * tensor(values["g"]), keepdims=0), name="loss")
    model.graph.outputs.extend(statistics)
    rng = np.random.default_rng(2)
    x, g = (rng.normal(size=(4, 3, 5, 5)).astype(np.float32) for _ in range(2))
    gain, shift = np.float32([0.5, 1.0, 2.0]), np.float32([0.1, -0.2, 0.3])
    step = gradients(model, "loss", ["x", "gain:conv", "shift:conv"], builder="portable")
    found = Session(step).run({"x": x, "g": g, "gain:conv": gain, "shift:conv": shift})
    mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    normalised = (x - mean[:, None, None]) / np.sqrt(variance + EPSILON)[:, None, None]
    np.testing.assert_allclose(found["mean:conv"], mean, atol=1e-6)
    np.testing.assert_allclose(found["variance:conv"], variance, rtol=1e-5)
    wanted = normalised * gain[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(found["y"], wanted, atol=1e-5)
    np.testing.assert_allclose(found["gain:conv_grad"], (g * normalised).sum(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found["shift:conv_grad"], g.sum(axis=(0, 2, 3)), rtol=1e-4)
    centred = g - g.mean(axis=(0, 2, 3), keepdims=True)
    along = (g * normalised).mean(axis=(0, 2, 3), keepdims=True)
    by_x = (gain / np.sqrt(variance + EPSILON))[:, None, None] * (centred - normalised * along)
    np.testing.assert_allclose(found["x_grad"], by_x, atol=1e-5)


def test_training_starts_from_the_same_function(net, samples) -> None:
    plain = _absorbed(net, samples, [])
    kept = with_statistics(_absorbed(net, samples, ["h"]), samples, threads=1)
    assert kept.normalised == ("first",)
    assert kept.view(kept.start, "variance:first").std() > 0.1
    feeds = next(samples.batches(32)).feeds
    expected, found = (Session(simulate(*t.release(t.start)), threads=1).run_list(feeds)[0] for t in (plain, kept))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_running_statistics_are_folded_into_weights_and_scales(net, samples) -> None:
    """y = gain (z - M) / sqrt(V + eps) + shift, computed by hand from the layer that is not normalised."""
    kept = _absorbed(net, samples, ["h"])
    rng, values = np.random.default_rng(3), kept.start.copy()
    drawn = {name: rng.uniform(0.5, 2.0, 4).astype(np.float32) for name in ("gain", "shift", "mean", "variance")}
    feeds = next(samples.batches(32)).feeds
    (before, first), (after, second) = kept.release(values), kept.release(_set(kept, values, drawn))
    z, y = (
        Session(simulate(n, dataclasses.replace(p, activations=())), outputs=["h"], threads=1).run_list(feeds)[0]
        for n, p in ((before, first), (after, second))
    )
    gain, shift, mean, variance = (drawn[name][:, None, None] for name in ("gain", "shift", "mean", "variance"))
    np.testing.assert_allclose(y, gain * (z - mean) / np.sqrt(variance + EPSILON) + shift, rtol=1e-4, atol=1e-4)
    assert second.layer("first").weight.scale != first.layer("first").weight.scale


def _set(trained: Trained, values: np.ndarray, drawn: dict[str, np.ndarray]) -> np.ndarray:
    for name, value in drawn.items():
        trained.view(values, f"{name}:first")[...] = value
    return values


def test_statistics_follow_the_batches(net, samples) -> None:
    kept = _absorbed(net, samples, ["h"])
    values = kept.start.copy()
    kept.track(values, {"mean:first": np.full(4, 2.0, np.float32), "variance:first": np.full(4, 3.0, np.float32)})
    np.testing.assert_allclose(kept.view(values, "mean:first"), 0.2, rtol=1e-6)
    np.testing.assert_allclose(kept.view(values, "variance:first"), 1.2, rtol=1e-6)


def test_scales_per_tensor_cannot_be_folded_into(net, samples) -> None:
    with pytest.raises(UsageError, match=r"config\.keep_bn folds a factor per channel.*use per_channel=True"):
        _absorbed(net, samples, ["h"], per_channel=False)


def test_there_must_be_something_to_keep(net, samples) -> None:
    with pytest.raises(UsageError, match="no BatchNormalization to keep"):
        qgraph.finetune(net.ir_model, samples, config=QUICK)


def test_training_with_the_demo_network(digits, digits_calibration, tmp_path) -> None:
    """It learns, a checkpoint holds all of it, and the file is as small as without."""
    few = dict(np.load(digits_calibration))
    config = dataclasses.replace(QUICK, batch=16, shard=16, rate=1e-2)
    few = {name: array[:256] for name, array in few.items()}
    settings = {"weights": 2, "activations": 2, "measure": False}
    kept = qgraph.finetune(digits, few, config=config, resume=tmp_path, **settings)
    assert kept.epochs[2].distance < 0.5 * kept.epochs[0].distance
    again = qgraph.finetune(digits, few, config=config, resume=tmp_path, **settings)
    assert again.plan == kept.plan
    folded = qgraph.finetune(digits, few, config=dataclasses.replace(config, keep_bn=False), **settings)
    assert abs(kept.nbytes - folded.nbytes) < 0.01 * folded.nbytes
    assert kept.plan != folded.plan
