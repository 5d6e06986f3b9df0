"""Means over images in networks that are observed with distilled samples."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.observe.spatial_means import SHARE, with_spread_means
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(11)
SAMPLES = RNG.normal(size=(64, 3, 8, 8)).astype(np.float32)
POOLS = {
    "global": "p = GlobalAveragePool(r) f = Flatten(p)",
    "whole window": "p = AveragePool<kernel_shape = [8, 8]>(r) f = Flatten(p)",
    "reduced": "a = Constant<value_ints = [-1, 2]>() f = ReduceMean<keepdims = 0>(r, a)",
}
OTHERS = {
    "small window": "p = AveragePool<kernel_shape = [4, 4]>(r) g = GlobalMaxPool(p) f = Flatten(g)",
    "normalised": "p = GlobalAveragePool(r) s = Sub(r, p) g = GlobalMaxPool(s) f = Flatten(g)",
    "power": "q = Mul(r, r) a = Constant<value_ints = [2, 3]>() f = ReduceMean<keepdims = 0>(q, a)",
}


def network(pool: str) -> qgraph.onnxfile.model.Model:
    sizes = {"w": (4, 3, 1, 1), "v": (5, 4)}
    held = {name: RNG.normal(0, 0.5, shape) for name, shape in sizes.items()}
    held["w"] /= np.linalg.norm(held["w"], axis=1, keepdims=True)
    held |= {"beta": np.zeros(4), "one": np.ones(4)}
    given = ", ".join(
        f"float[{', '.join(map(str, a.shape))}] {name} = {{{', '.join(f'{v:.3f}' for v in a.ravel())}}}"
        for name, a in held.items()
    )
    body = (
        f"c = Conv(x, w) b = BatchNormalization(c, one, beta, beta, one) r = Relu(b) {pool} y = Gemm<transB = 1>(f, v)"
    )
    head = "g (float[n, 3, 8, 8] x) => (float[n, 5] y)"
    return load(ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 20]> {head} <{given}> {{ {body} }}'))


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_means_lie_apart_as_far_as_those_of_real_images(pool):
    net = normalise(network(pool))
    data = open_data({"x": SAMPLES}, net)
    session = Session(with_spread_means(net, data).ir_model, outputs=["r", "f", "y"])
    relu, means, results = session.run_list({"x": SAMPLES})
    inside, across = relu.transpose(1, 0, 2, 3).reshape(4, -1).var(axis=1).sum(), means.var(axis=0).sum()
    assert 0.7 * SHARE**2 * inside < across < SHARE**2 * inside  # less what is cut off at 0
    true = relu.mean(axis=(2, 3))
    assert np.corrcoef(means.ravel(), true.ravel())[0, 1] > 0.7
    before = Session(net.ir_model, outputs=["y"]).run_list({"x": SAMPLES})[0]
    assert np.ptp(results) > 2 * np.ptp(before)  # what follows is farther apart, too


@pytest.mark.parametrize("pool", OTHERS.values(), ids=OTHERS)
def test_other_means_stay(pool):
    net = normalise(network(pool))
    assert with_spread_means(net, open_data({"x": SAMPLES}, net)) is net


@pytest.mark.parametrize("samples", [np.zeros_like(SAMPLES), SAMPLES[:1]], ids=["all alike", "one"])
def test_means_that_do_not_vary_stay(samples):
    net = normalise(network(POOLS["global"]))
    made = with_spread_means(net, open_data({"x": samples}, net))
    np.testing.assert_array_equal(*(Session(m.ir_model).run_list({"x": SAMPLES})[0] for m in (net, made)))


@pytest.mark.parametrize(("bits", "roomy"), [(8, True), (4, False)])
def test_grids_of_8_bits_made_without_data_have_room_for_images_that_show_one_thing(bits, roomy):
    """Every channel of a real image is bright or dark as a whole; a distilled image is grey."""
    model = network(POOLS["global"])
    result = qgraph.quantize(model.ir_model, measure=False, clip="max", rounding="nearest", activations=bits)
    grid = next(grid for grid in result.plan.activations if grid.tensor in ("p", "f"))
    images = (RNG.normal(size=(256, 3, 1, 1)) + 0.3 * RNG.normal(size=(256, 3, 8, 8))).astype(np.float32)
    net = normalise(model)
    means = observe(net, open_data({"x": images}, net), tensors={"p": None})["p"]
    assert (grid.scale * (2**grid.bits - 1 - grid.zero_point) > 0.35 * float(means.max)) == roomy
