"""Statistics that follow from BatchNormalization, against those of a network whose activations follow the law."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
import qmath
from qgraph.observe.known_laws import REACH, known_laws, with_known_laws
from qgraph.observe.propagation import Moments, known_moments
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.samples.dataset import open_data

TEXT = """<ir_version: 8, opset_import: ["": 17]> m (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) <
 float[2, 2, 1, 1] w = {1.0, 0.0, 0.0, 1.0}, float[2, 2, 1, 1] v = {0.5, 0.2, -0.3, 0.4},
 float[2] gamma = {2.0, -0.5}, float[2] beta = {1.0, -0.2}, float[2] mean = {0.0, 0.0}, float[2] var = {1.0, 1.0},
 float zero = {0.0}, float six = {6.0}> {
    c = Conv(x, w)
    n = BatchNormalization<epsilon = 0.0>(c, gamma, beta, mean, var)
    r = Clip(n, zero, six)
    d = Conv(r, v)
    k = BatchNormalization<epsilon = 0.0>(d, gamma, beta, mean, var)
    s = Add(n, k)
    t = Relu(s)
    o = Add(t, k)
    y = Conv(o, w)
}"""


def _known() -> tuple[qgraph.onnxfile.model.Model, dict[str, Moments]]:
    loaded = load(ir.from_onnx_text(TEXT))
    return normalise(loaded), known_moments(normalise(loaded, fold_bn=False))


def test_laws_follow_through_clips_and_sums() -> None:
    laws = known_laws(*_known())
    assert set(laws) == {"n", "r", "k", "s", "t"}  # what a ReLU clipped is no summand, and no layer keeps a law
    np.testing.assert_allclose(laws["s"].moments.mean, [2.0, -0.4], rtol=1e-6)
    np.testing.assert_allclose(laws["s"].moments.variance, [8.0, 0.5], rtol=1e-6)
    assert [(laws[n].low, laws[n].high) for n in "nrt"] == [(-np.inf, np.inf), (0.0, 6.0), (0.0, np.inf)]


def test_statistics_of_the_law_take_the_place_of_those_of_samples() -> None:
    net, known = _known()
    rng = np.random.default_rng(0)
    off = 0.3 * rng.laplace(scale=np.sqrt(0.5), size=(256, 2, 4, 4)).astype(np.float32)
    right = rng.laplace(scale=np.sqrt(0.5), size=(20_000, 2, 4, 4)).astype(np.float32)
    few, many = (observe(net, open_data({"x": x}, net)) for x in (off, right))
    found = with_known_laws(few, net, known)
    for name in ("n", "r"):
        if name not in few.tensors:
            continue
        law, truth = found[name], many[name]
        assert law.count == few[name].count
        np.testing.assert_allclose(law.mean, truth.mean, rtol=0.02)
        np.testing.assert_allclose(law.variance, truth.variance, rtol=0.02)
    assert found["r"].channels.max.tolist() == pytest.approx([6.0, -0.2 + REACH * 0.5])
    assert found["x"] == few["x"]
    assert found["o"] == few["o"]


def test_ranges_without_data_do_not_depend_on_what_was_distilled() -> None:
    plans = [
        qgraph.quantize(ir.from_onnx_text(TEXT), seed=seed, shapes={"x": (4, 2, 4, 4)}, measure=False).plan
        for seed in (0, 1)
    ]
    first, second = ({a.tensor: a for a in plan.activations} for plan in plans)
    assert first["r"] == second["r"]
    assert first["x"] != second["x"]


def test_no_moments_change_nothing() -> None:
    net, _ = _known()
    data = open_data({"x": np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32)}, net)
    observed = observe(net, data)
    assert with_known_laws(observed, net, {}).tensors == observed.tensors
    assert isinstance(observed["r"], qmath.Statistics)
