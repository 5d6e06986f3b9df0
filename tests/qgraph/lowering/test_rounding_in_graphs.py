"""Q-Rater's rounding in the graphs that a plan becomes: both formats compute what the tables say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import qmath
from qgraph.errors import PlanError
from qgraph.lowering.export import export
from qgraph.lowering.simulate import simulate
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, Rounding, WeightQuant
from qgraph.plan.staircase import on_grid, rounding_table
from qgraph.running.sessions import Session

ROUNDINGS = [
    Rounding(gamma_n=0.0, gamma_s=0.5),
    Rounding(gamma_n=-0.7, gamma_s=0.25),
    Rounding(gamma_n=0.9, gamma_s=0.5, reading="printed"),
    Rounding(gamma_n=1.0, gamma_s=0.0),
    Rounding(gamma_n=-1.0),
    Rounding(gamma_n=0.6),
]
MATMUL = """
<ir_version: 10, opset_import: ["": 17]>
net (float[N, 6] x) => (float[N, 5] y) { y = MatMul (x, w) }
"""


@pytest.fixture
def net(model_from_text):
    rng = np.random.default_rng(0)
    return normalise(
        load(
            model_from_text(
                MATMUL.replace("x) =>", "x, float[6, 5] w) =>"), w=rng.normal(size=(6, 5)).astype(np.float32)
            )
        )
    )


def plan_for(net, activation: ActivationQuant, weight: WeightQuant) -> QuantPlan:
    name = next(str(node.name) for node in net.graph)
    layer = LayerQuant(name=name, op="MatMul", weight=weight)
    return QuantPlan(model=net.digest, recipe="qrater", layers=(layer,), activations=(activation,))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("subdivision", [0, 16])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_both_formats_compute_the_staircase(net, rounding, subdivision, symmetric):
    rounding = dataclasses.replace(rounding, subdivision=subdivision)
    activation = ActivationQuant(
        tensor="x", bits=4, scale=0.3, symmetric=symmetric, zero_point=7 if symmetric else 0, rounding=rounding
    )
    weight = WeightQuant(bits=3, scale=(0.5,), rounding=dataclasses.replace(rounding, subdivision=0))
    plan = plan_for(net, activation, weight)
    assert QuantPlan.from_json(plan.to_json()) == plan
    x = np.random.default_rng(1).normal(size=(400, 6), scale=2).astype(np.float32)
    x[0] = 0
    w = weights.quantized(next(iter(net.graph)).inputs[1].const_value.numpy(), weight)
    expected = on_grid(x, activation) @ w
    for lowered in (simulate(net, plan), export(net, plan)):
        produced = Session(lowered).run({"x": x})["y"]
        np.testing.assert_allclose(produced, expected, rtol=0, atol=1e-5)


def test_a_subdivision_moves_thresholds_by_half_of_its_step_at_most():
    exact = Rounding(gamma_n=0.7, gamma_s=0.5)
    x = np.linspace(-8, 8, 4001)
    fine = rounding_table(dataclasses.replace(exact, subdivision=16), 4, signed=True).quantize(x, 1.0)
    nearest_sixteenth = np.rint(x * 16) / 16
    assert (fine == rounding_table(exact, 4, signed=True).quantize(nearest_sixteenth, 1.0)).mean() > 0.999


def test_weights_round_along_their_channels():
    w = np.random.default_rng(2).normal(size=(4, 3, 3, 3)).astype(np.float32)
    scale = (0.5, 0.25, 1.0, 0.125)
    grid = WeightQuant(
        bits=4, scale=scale, granularity=qmath.Granularity(axis=0), rounding=Rounding(gamma_n=-0.8, gamma_s=0.25)
    )
    table = qmath.rounding_table(-0.8, 0.25, bits=4)
    for channel, step in enumerate(scale):
        np.testing.assert_array_equal(weights.codes(w, grid)[channel], table.quantize(w[channel], step))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rounding(gamma_n=1.5), "gamma_n"),
        (lambda: Rounding(gamma_n=0.5, gamma_s=-0.1), "gamma_s"),
        (lambda: Rounding(gamma_n=float("nan")), "gamma_n"),
        (lambda: Rounding(gamma_n=0.5, subdivision=-1), "subdivision"),
        (lambda: WeightQuant(bits=4, scale=(1.0,), symmetric=False, rounding=Rounding(gamma_n=0.5)), "symmetric"),
        (lambda: ActivationQuant(tensor="t", bits=4, scale=1.0, zero_point=3, symmetric=True), "zero_point 7"),
        (lambda: ActivationQuant(tensor="t", bits=4, scale=1.0, zero_point=3, rounding=Rounding(gamma_n=0.5)), "'t'"),
        (
            lambda: ActivationQuant(tensor="t", bits=6, scale=1.0, rounding=Rounding(gamma_n=0.5, subdivision=5)),
            "4 at most",
        ),
    ],
)
def test_roundings_that_make_no_grid_are_refused(make, message):
    with pytest.raises(PlanError, match=message):
        make()
