"""Clips of weights: on every kind of grid, no worse than the full range."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import qmath
from qgraph.assess.layer_errors import layer_reports
from qgraph.graph.sites import GraphView
from qgraph.methods.aciq.clip import (
    CalibrationWarning,
    Clipped,
    clip_activations,
    clip_ranges,
    clip_weights,
    prior_rejected,
)
from qgraph.methods.aciq.refine import refine
from qgraph.observe.statistics import observe
from qgraph.onnxfile.opset import prepare
from qgraph.plan import codes as weights
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.samples.dataset import open_data

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,4] x, float[4,6] w) => (float[N,6] y) { y = MatMul(x, w) }"""


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_least_squares_clip_of_weights(model_from_text, symmetric, per_channel):
    weight = np.random.default_rng(4).laplace(0.3, 1.0, (4000, 6)).astype(np.float32)
    weight[:, 5] = 0
    net = prepare(model_from_text(TEXT.replace("4,6", "4000,6").replace("N,4]", "N,4000]"), w=weight))
    view = GraphView(net)
    options = {"weights": 3, "edge_bits": 3, "activations": None}
    full = initial_plan(
        view, choose_recipe("minmax", False, symmetric=symmetric, per_channel=per_channel, **options), None
    )

    def errors(plan):
        return ((weights.quantized(weight, plan.layers[0].weight) - weight) ** 2).mean(axis=0)

    before, after = errors(full), errors(clip_weights(full, view, method="mse"))
    assert after[5] == before[5] == 0
    assert (after[:5] < 0.6 * before[:5]).all()
    clipped = clip_weights(full, view, method="percentile").layers[0].weight
    assert clipped.symmetric == symmetric
    assert max(clipped.scale[:5]) < max(full.layers[0].weight.scale[:5])


def test_priors_are_rejected_where_the_data_have_two_peaks(model_from_text):
    rng = np.random.default_rng(0)
    net = prepare(model_from_text(TEXT, w=rng.standard_normal((4, 6)).astype(np.float32)))
    view = GraphView(net)
    recipe = choose_recipe("aciq", True, activations=3, edge_bits=3)
    for peaks, rejected in ((0.0, False), (30.0, True)):
        x = rng.normal(0, 1, (500, 4)) + peaks * rng.choice([-1, 1], (500, 4))
        data = open_data(x.astype(np.float32), net)
        observed = observe(net, data)
        plan = refine(initial_plan(view, recipe, observed), view, observed)
        reports = layer_reports(view, plan, observed, data)
        assert [report.prior_rejected for report in reports] == [rejected]
        bare = observe(net, data, histograms=False)
        assert [report.prior_rejected for report in layer_reports(view, plan, bare, data)] == [None]


@pytest.mark.parametrize(("peaks", "bits", "rejected"), [(0.0, 5, False), (8.0, 8, True), (8.0, 5, True)])
def test_a_prior_is_rejected_from_a_quarter_of_a_decibel_on(peaks, bits, rejected):
    """Between two narrow peaks eight sigma from zero a Laplace or Gaussian range costs 0.7 dB at 8 bits, 1.4 at 5."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=100_000) + peaks * rng.choice([-1, 1], 100_000)
    statistics = qmath.Statistics.of(x.astype(np.float32))
    prior = qmath.prior_ranges([statistics.histogram], bits=bits, one_sided=False)
    excess = 10 * np.log10(prior.error[0] / prior.least[0])
    assert (0.25 < excess < 2.5) if rejected else excess < 0.25
    assert prior_rejected(statistics, bits=bits) == rejected
    (found,) = clip_ranges([statistics.histogram], method="aciq", bits=[bits], one_sided=[False])
    assert found.method == ("mse" if rejected else "aciq")


@pytest.mark.parametrize("method", ["aciq", "mse", "percentile", "kl", "max"])
def test_an_operand_of_both_signs_is_clipped_on_its_own_sides(model_from_text, method):
    """Much above zero and little below, and the mirror image of it."""
    net = prepare(model_from_text(TEXT, w=np.ones((4, 6), np.float32)))
    view = GraphView(net)
    recipe = choose_recipe("minmax", True, activations=6, edge_bits=6)
    x = (np.random.default_rng(1).gamma(2.0, 1.0, (20_000, 4)) - 0.7).astype(np.float32)
    grids = []
    for sign in (1, -1):
        observed = observe(net, open_data(sign * x, net))
        (grid,) = clip_activations(initial_plan(view, recipe, observed), view, observed, method=method).activations
        grids.append(grid)
    above, below = grids
    for narrow, wide in ((-above.low, above.high), (below.high, -below.low)):
        assert 0.4 < narrow < 0.9
        assert 5 < wide < 16


def test_a_clip_that_cuts_most_of_the_energy_is_reported(digits):
    """One value in 512 carries all the energy; clips that keep it are not reported."""
    net = prepare(digits)
    view = GraphView(net)
    images = np.zeros((8, 1, 8, 8), np.float32)
    images[0, 0, 0, 0] = 1.0
    observed = observe(net, open_data(images, net))
    plan = initial_plan(view, choose_recipe("minmax", True), observed)
    only_input = dataclasses.replace(plan, activations=tuple(a for a in plan.activations if a.tensor == "input"))
    assert len(only_input.activations) == 1
    with pytest.warns(CalibrationWarning, match=r"'percentile' cuts 100% of the energy of 'input'"):
        clip_activations(only_input, view, observed, method="percentile", percentile=99.0)
    assert clip_activations(only_input, view, observed, method="max").activations == only_input.activations


@pytest.mark.parametrize(("method", "low", "high"), [("aciq", -1.0, 2.0), ("mse", -9.0, 9.0)])
def test_only_steps_of_least_error_end_beyond_the_data(model_from_text, monkeypatch, method, low, high):
    net = prepare(model_from_text(TEXT, w=np.ones((4, 6), np.float32)))
    view = GraphView(net)
    observed = observe(net, open_data(np.linspace(-1, 2, 400, dtype=np.float32).reshape(100, 4), net))
    wide = Clipped(low=-9.0, high=9.0, method=method)
    monkeypatch.setattr("qgraph.methods.aciq.clip.clip_ranges", lambda histograms, **_: [wide] * len(histograms))
    plan = initial_plan(view, choose_recipe("minmax", True, edge_bits=8), observed)
    grid = clip_activations(plan, view, observed, method="aciq").activations[0]
    assert (grid.low, grid.high) == pytest.approx((low, high), abs=grid.scale)
