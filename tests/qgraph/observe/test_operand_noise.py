"""Errors of operands in closed form: their moments under a law, padding, and what layers make of them."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qgraph.assess.layer_errors import measured_power, predicted_noise
from qgraph.graph.sites import GraphView
from qgraph.observe.operand_noise import channel_noise, coverage, tap_sums
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import activation_grid
from qgraph.plan.plan import LayerQuant, QuantPlan, WeightQuant
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(11)
CONV = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,4,7,5] x, float[6,2,3,2] w) => (float[N,6,P,Q] y) {{ y = Conv<group=2{options}>(x, w) }}"""


def conv(model_from_text, options="", *, positive=False):
    weight = RNG.standard_normal((6, 2, 3, 2)).astype(np.float32)
    weight = np.abs(weight) if positive else weight
    return normalise(load(model_from_text(CONV.format(options=options), w=weight)))


@pytest.mark.parametrize("law", [qmath.Laplace, qmath.Gaussian])
@pytest.mark.parametrize("floor", [0.0, -0.3])
@pytest.mark.parametrize("bits", [2, 4])
def test_moments_of_the_error_are_those_of_samples(law, floor, bits) -> None:
    """Channels that clip, channels whose values all round to zero, and channels between two levels."""
    locs, scales = np.array([0.5, -1.0, 0.1, 1.5]), np.array([1.0, 0.5, 0.05, 0.01])
    laws = [law(loc, scale, True) for loc, scale in zip(locs, scales, strict=True)]
    x = floor + np.stack([prior.sample(200_000, seed=i) for i, prior in enumerate(laws)], axis=1)
    statistics = qmath.Statistics.of(x, channel_axis=1)
    grid = activation_grid("x", floor, 2.0, bits=bits)
    codes = np.clip(np.rint(x / grid.scale) + grid.zero_point, 0, grid.qmax) - grid.zero_point
    error = codes * grid.scale - x
    mean, square = channel_noise(grid, statistics)
    np.testing.assert_allclose(mean, error.mean(axis=0), atol=0.03 * grid.scale)
    np.testing.assert_allclose(square, np.square(error).mean(axis=0), atol=0.02 * grid.scale**2, rtol=0.03)


@pytest.mark.parametrize(
    "options", ["", ", pads=[1,0,1,1]", ", pads=[2,1,0,0], strides=[2,1]", ", pads=[2,1,2,1], dilations=[2,1]"]
)
def test_padding_is_counted_tap_by_tap(model_from_text, options) -> None:
    """A constant error: the layer's output is the sum over the taps that read the operand."""
    net = conv(model_from_text, options)
    layer = GraphView(net).layers[0]
    weight, errors = layer.weight_array().astype(np.float64), RNG.standard_normal(4)
    x = np.broadcast_to(errors.reshape(1, 4, 1, 1), (1, 4, 7, 5)).astype(np.float32)
    y = Session(net.ir_model).run({"x": x})["y"].astype(np.float64)
    shared = tap_sums(layer, weight, errors)
    expected = np.einsum("ct,tu,cu->c", shared, coverage(layer), shared)
    np.testing.assert_allclose(expected, np.square(y).mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(shared @ np.diagonal(coverage(layer)), y.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top", [1.0, 3.0])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("options", ["", ", pads=[1,1,1,0]"])
def test_predicted_noise_of_a_clipped_operand(model_from_text, options, positive, top) -> None:
    """Clipping lowers all values at once: predicted to half a decibel, though errors are far from independent.

    Those of positive weights add up over all taps, and those of others cancel.
    """
    net = conv(model_from_text, options, positive=positive)
    view = GraphView(net)
    data = open_data(np.maximum(RNG.standard_normal((512, 4, 7, 5)), 0).astype(np.float32), net)
    weight = view.layers[0].weight_array()
    fine = WeightQuant(bits=8, scale=(float(np.abs(weight).max() / 127),))
    plan = QuantPlan(
        model=net.digest,
        recipe="test",
        layers=(LayerQuant(name=view.layers[0].name, op="Conv", weight=fine),),
        activations=(activation_grid("x", 0.0, top, bits=3),),
    )
    (predicted,) = predicted_noise(view, plan, observe(net, data)).values()
    ((_, measured),) = measured_power(view, plan, data, samples=512).values()
    assert predicted == pytest.approx(measured, rel=0.12)
