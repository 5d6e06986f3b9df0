"""Warnings about samples: each where it is due, and none where all is well."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import qgraph

TWO = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4] x, float[N, 4] state) => (float[N, 3] y) <float[4, 3] w, float[4, 3] v> {
  a = MatMul(x, w)
  b = MatMul(state, v)
  y = Add(a, b)
}
"""
BRANCH = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 4] x) => (float[1, 3] y) <float[4, 3] w, float zero> {
  h = MatMul(x, w)
  s = ReduceMax<keepdims = 0>(x)
  c = Greater(s, zero)
  y = If (c) <
    then_branch = t () => (float[1, 3] p) { p = Relu(h) },
    else_branch = e () => (float[1, 3] n) { n = Neg(h) }
  >
}
"""
PIXELS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 1, 6, 6] x) => (float[N, 2, 4, 4] y)
  <float[2, 1, 3, 3] w, float[2] one, float[2] zero, float[2] mean, float[2] var> {
  h = Conv(x, w)
  n = BatchNormalization(h, one, zero, mean, var)
  y = Relu(n)
}
"""


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def said(*arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qgraph.quantize(*arguments, **options)
    return [message for w in caught if "which holds few weights" not in (message := str(w.message))]  # of so few bytes


def test_an_input_that_never_changes(model_from_text):
    model = model_from_text(TWO, w=normal(4, 3), v=normal(4, 3))
    (message,) = said(model, {"x": normal(40, 4), "state": np.zeros((40, 4), np.float32)})
    assert "input 'state' is 0 throughout all samples" in message
    assert said(model, {"x": normal(40, 4), "state": normal(40, 4)}) == []


def test_an_input_that_changes_late(model_from_text):
    model = model_from_text(TWO, w=normal(4, 3), v=normal(4, 3))
    state = np.zeros((400, 4), np.float32)
    state[300:] = normal(100, 4)
    assert said(model, {"x": normal(400, 4), "state": state}) == []


@pytest.mark.parametrize(("sign", "branch"), [(1, "else"), (-1, "then")])
def test_a_branch_never_taken(model_from_text, sign, branch):
    model = model_from_text(BRANCH, w=normal(4, 3), zero=np.float32(0).reshape(()))
    (message,) = (m for m in said(model, sign * np.abs(normal(40, 4))) if "branch" in m)
    assert f"the {branch} branch of If" in message
    assert "was never taken" in message
    assert "samples of 'x'" in message
    assert not any("was never taken" in m for m in said(model, normal(40, 4) * np.sign(normal(40, 1))))


def test_samples_beyond_the_calibrated_range(model_from_text):
    from qgraph.onnxfile.load import load
    from qgraph.samples.dataset import open_data
    from qgraph.samples.split import hold_out

    model = model_from_text(TWO, w=normal(4, 3), v=normal(4, 3))
    data = {"x": normal(600, 4), "state": normal(600, 4)}
    far = list(hold_out(open_data(data, load(model))).held_out.rows)
    assert said(model, data) == []
    data["x"] = data["x"].copy()
    data["x"][far[:3]] *= 50
    (message,) = [found for found in said(model, data) if "below the target" not in found]
    assert "do not hold for held-out samples" in message
    assert "samples of the input 'x'" in message
    assert said(model, data, measure=False) == []


def test_pixels_that_look_unnormalised(model_from_text):
    weight = normal(2, 1, 3, 3)
    spread = np.full(2, (weight**2).sum() / 2, np.float32)
    weights = {"one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32), "mean": np.zeros(2, np.float32)}
    model = model_from_text(PIXELS, w=weight, var=spread, **weights)
    images = np.random.default_rng(0).integers(0, 256, size=(40, 1, 6, 6)).astype(np.float32)
    (message,) = said(model, images)
    assert "the samples look unnormalised: input 'x' goes from 0 to 255" in message
    assert "preprocessing=qgraph.Preprocessing(mean=" in message
    assert said(model, (images - 127.5) / 74) == []


def test_images_whose_mean_and_std_were_forgotten(model_from_text):
    weight = normal(2, 1, 3, 3)
    power = (weight**2).sum(axis=(1, 2, 3))
    weights = {"w": weight, "one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32)}
    centre = weight.sum(axis=(1, 2, 3)) / 2
    images = np.random.default_rng(0).random(size=(40, 1, 6, 6)).astype(np.float32)
    trained_on_shares = model_from_text(PIXELS, var=power / 12, mean=centre, **weights)
    assert said(trained_on_shares, images) == []
    trained_on_normalised = model_from_text(PIXELS, var=power, mean=np.zeros(2, np.float32), **weights)
    (message,) = [found for found in said(trained_on_normalised, images) if "below the target" not in found]
    assert "the samples look unnormalised: input 'x' goes from" in message
    assert "expects them to vary" in message
    assert said(trained_on_normalised, (images - 0.5) * np.float32(12**0.5)) == []
