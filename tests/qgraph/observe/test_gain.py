"""Moments and gains in closed form, against samples pushed through the network."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.graph.sites import GraphView
from qgraph.methods.zeroq.predict import predict, unit_error
from qgraph.methods.zeroq.sensitivity import sensitivity
from qgraph.observe.propagation import Moments, flow, known_moments
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

SAMPLES = 40_000


def rng():
    return np.random.default_rng(5)


DENSE = """
<ir_version: 8, opset_import: ["" : 14]>
dense (float[N, 24] x) => (float[N, 10] y) <float[48,24] a, float[48] p, float[48,48] b, float[10,48] c>
{
  h = Gemm<transB = 1>(x, a, p)
  r = CURVE
  g = Gemm<transB = 1>(r, b)
  s = Add(g, r)
  y = Gemm<transB = 1>(s, c)
}
"""


def dense(model_from_text, curve):
    random = rng()
    arrays = {
        "a": random.standard_normal((48, 24)) / 24**0.5,
        "p": 0.5 * random.standard_normal(48),
        "b": random.standard_normal((48, 48)) / 48**0.5,
        "c": random.standard_normal((10, 48)) / 48**0.5,
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return normalise(load(model_from_text(DENSE.replace("CURVE", curve), **arrays)))


def run(net, names, feeds):
    return Session(net.ir_model, outputs=names).run(feeds)


@pytest.mark.parametrize("curve", ["Relu(h)", "Sigmoid(h)", "HardSwish(h)", "LeakyRelu<alpha = 0.2>(h)", "Tanh(h)"])
def test_moments_are_those_of_samples(model_from_text, curve):
    net = dense(model_from_text, curve)
    x = rng().standard_normal((SAMPLES, 24)).astype(np.float32)
    seen = run(net, ["h", "r", "g"], {"x": x})
    moments = flow(GraphView(net), {}).moments
    for name, array in seen.items():
        np.testing.assert_allclose(moments[name].mean, array.mean(axis=0), atol=0.06)
    for name in ("h", "r"):  # behind the second layer channels are no longer independent
        np.testing.assert_allclose(moments[name].variance, seen[name].var(axis=0), rtol=0.06, atol=0.01)


@pytest.mark.parametrize("curve", ["Relu(h)", "Sigmoid(h)", "HardSwish(h)", "LeakyRelu<alpha = 0.2>(h)"])
def test_gains_are_those_of_added_noise(model_from_text, curve):
    """Noise of small variance in every channel of h moves y by the sum of its gains, relative to y's variance."""
    net = dense(model_from_text, curve)
    random = rng()
    h = run(net, ["h"], {"x": random.standard_normal((SAMPLES, 24)).astype(np.float32)})["h"]
    noise = 0.01 * random.standard_normal(h.shape).astype(np.float32)
    back, weights = GraphView(net), {n: v.const_value.numpy() for n, v in net.graph.initializers.items()}
    act = {
        "Relu(h)": lambda v: np.maximum(v, 0),
        "Sigmoid(h)": lambda v: 1 / (1 + np.exp(-v)),
        "HardSwish(h)": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
        "LeakyRelu<alpha = 0.2>(h)": lambda v: np.where(v > 0, v, 0.2 * v),
    }[curve]

    def rest(v):
        r = act(v)
        return (r @ weights["b"].T + r) @ weights["c"].T

    flows = flow(back, {})
    moved = ((rest(h + noise) - rest(h)) ** 2).mean(axis=0).sum() / 0.01**2
    expected = flows.gains["h"].sum() * flows.moments["y"].variance.sum()
    assert expected == pytest.approx(moved, rel=0.2)


CONV = """
<ir_version: 8, opset_import: ["" : 14]>
conv (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y)
<float[8,4,3,3] w, float[8] gamma, float[8] beta, float[8] mean, float[8] var, float[6,8,1,1] v>
{
  h = Conv<pads = [1, 1, 1, 1]>(x, w)
  n = BatchNormalization(h, gamma, beta, mean, var)
  y = Conv(n, v)
}
"""


def conv(model_from_text):
    random = rng()
    shapes = {"w": (8, 4, 3, 3), "gamma": (8,), "beta": (8,), "mean": (8,), "v": (6, 8, 1, 1)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return load(model_from_text(CONV, **arrays, var=random.uniform(1, 2, 8).astype(np.float32)))


def test_batch_normalization_is_believed(model_from_text):
    loaded = conv(model_from_text)
    known = known_moments(normalise(loaded, fold_bn=False))
    folded = normalise(loaded)
    assert known_moments(folded) == {}
    moments = flow(GraphView(folded), known).moments
    gamma = loaded.graph.initializers["gamma"].const_value.numpy()
    np.testing.assert_allclose(moments["n"].variance, gamma.astype(np.float64) ** 2)
    assert set(known) == {"n"}


def test_a_pointwise_layer_passes_squared_weights(model_from_text):
    folded = normalise(conv(model_from_text))
    one = Moments(mean=np.zeros(8), variance=np.ones(8))
    flows = flow(GraphView(folded), {"n": one})
    v = folded.graph.initializers["v"].const_value.numpy().astype(np.float64)[:, :, 0, 0]
    np.testing.assert_allclose(flows.gains["n"], (v**2).sum(axis=0) / (v**2).sum())


def test_unit_errors_fall_by_almost_four_per_bit():
    errors = [unit_error(bits) for bits in range(2, 9)]
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert errors[0] == pytest.approx(0.1902, rel=1e-3)  # three levels: Max, 1960, Table I
    assert ((ratios > 3) & (ratios < 6)).all()


@pytest.mark.parametrize("name", ["cifar10_resnet20", pytest.param("cifar10_resnet32", marks=pytest.mark.slow)])
def test_layers_rank_as_measured(shared, name):
    loaded = load(shared / "models" / f"{name}.onnx")
    net = normalise(loaded)
    view = GraphView(net)
    menu: dict[str, list] = {}
    for bits in (2, 4, 8):
        recipe = choose_recipe("minmax", True, weights=bits, edge_bits=bits, activations=None)
        for layer in initial_plan(view, recipe, None).layers:
            menu.setdefault(layer.name, []).append(layer)
    with np.load(shared / "data" / "cifar10_train20k.npz") as archive:
        images = archive["images"][:16].astype(np.float32).transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    table = sensitivity(net, open_data((images - mean) / std, net), menu)
    assert predict(table, view, known_moments(normalise(loaded, fold_bn=False))).agreement() > 0.9
    assert predict(table, view, {}).agreement() > 0.85


def test_noise_at_neighbouring_places_is_correlated(model_from_text):
    """A filter as large as its operand: the variance of its sum over noise whose places correlate by one half."""
    text = """
    <ir_version: 8, opset_import: ["" : 14]>
    conv (float[N, 4, 3, 3] x, float[6,4,3,3] w) => (float[N, 6, 1, 1] y) { y = Conv(x, w) }"""
    weight = rng().standard_normal((6, 4, 3, 3)).astype(np.float32)
    net = normalise(load(model_from_text(text, w=weight)))
    covariance = 0.5 * np.eye(9) + 0.5
    taps = weight.astype(np.float64).reshape(6, 4, 9)
    noise = np.einsum("oit,tu,oiu->i", taps, covariance, taps)
    np.testing.assert_allclose(flow(GraphView(net), {}).gains["x"], noise / np.sum(taps**2), rtol=1e-9)
