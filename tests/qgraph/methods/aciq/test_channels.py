"""Bits and steps per channel: quotas kept, factors that cancel, and errors where they cannot."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qgraph.assess.fused import inspect_fused
from qgraph.assess.layer_errors import layer_reports
from qgraph.errors import PlanError
from qgraph.graph.sites import GraphView
from qgraph.lowering.export import export
from qgraph.lowering.simulate import simulate
from qgraph.methods.aciq.channels import ChannelConfig, allocate_weights, scale_channels
from qgraph.methods.aciq.refine import AciqConfig, refine
from qgraph.observe.channel_laws import channel_errors, channel_prior
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.grids import initial_plan
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data
from qmath import Granularity

RNG = np.random.default_rng(5)


NET = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,3,10,10] x, float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[64,4,3,3] w3,
  float[64,64,1,1] w4, float six, float zero, float one) => (float[N,64,6,6] y) {{
  c1 = Conv(x, w1, b1)
  a1 = Relu(c1)
  c2 = Conv<group=8, pads=[1,1,1,1]>(a1, w2, b2)
  a2 = {bounded}
  c3 = Conv<group=2>(a2, w3)
  a3 = Relu(c3)
  c4 = Conv(a3, w4)
  s = Add(c4, a3)
  y = Relu(s)
}}"""


@pytest.fixture
def net(model_from_text):
    return network(model_from_text, "Clip(c2, zero, six)")


def network(model_from_text, bounded):
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (64, 4, 3, 3), "w4": (64, 64, 1, 1)}
    spreads = {name: np.geomspace(0.1, 2.0, shape[0]).reshape(-1, 1, 1, 1) for name, shape in shapes.items()}
    arrays = {n: (RNG.standard_normal(shape) * spreads[n]).astype(np.float32) for n, shape in shapes.items()}
    arrays |= {"b1": RNG.standard_normal(8).astype(np.float32), "b2": RNG.standard_normal(8).astype(np.float32)}
    arrays |= {"six": np.float32(6), "zero": np.float32(0), "one": np.float32(1)}
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    return normalise(load(model_from_text(NET.format(bounded=bounded), **arrays)))


def start(net, **options):
    view = GraphView(net)
    x = RNG.standard_normal((16, 3, 10, 10)).astype(np.float32)
    observed = observe(net, open_data(x, net))
    recipe = choose_recipe("aciq", True, edge_bits=4, **options)
    return view, observed, initial_plan(view, recipe, observed), x


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_weight_bits_fill_their_quota(net, bits, symmetric):
    view, _, plan, _ = start(net, weights=bits, activations=4, symmetric=symmetric)
    allocated = allocate_weights(plan, view)
    for before, quant in zip(plan.layers, allocated.layers, strict=True):
        widths = quant.weight.channel_bits
        if before.weight.bits == bits:
            assert sum(widths) == bits * len(widths)
            assert len(set(widths)) > 1
            assert max(widths) <= (8 if symmetric else 7)
    weight = view.by_name[allocated.layers[1].name].weight_array().reshape(8, -1)
    ranges = np.abs(weight).max(axis=1) if symmetric else np.ptp(np.c_[weight, np.zeros(8)], axis=1)
    widths = np.asarray(allocated.layers[1].weight.channel_bits)
    assert (np.diff(widths[np.argsort(ranges)]) >= 0).all()


def test_quotas_of_bins_and_of_bits_follow_different_powers_of_the_range(net):
    """Bins grow with range^(2/3) under a quota of bins, and with the range under one of bits; both keep their quota."""
    view, _, plan, _ = start(net, weights=4, activations=4, symmetric=True)
    plans = {quota: allocate_weights(plan, view, quota=quota) for quota in ("bins", "bits")}
    slopes = {}
    for quota, allocated in plans.items():
        grid = allocated.layers[1].weight
        widths = np.asarray(grid.channel_bits)
        ranges = np.abs(view.by_name[allocated.layers[1].name].weight_array().reshape(8, -1)).max(axis=1)
        slopes[quota] = np.polyfit(np.log2(ranges), widths, 1)[0]
        spent = (2**widths).sum() / 2**4 if quota == "bins" else widths.sum() / 4
        assert spent == 8
    assert slopes["bins"] == pytest.approx(2 / 3, abs=0.17)
    assert slopes["bits"] == pytest.approx(1, abs=0.17)


@pytest.mark.parametrize("allocate", [False, True])
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("clip", ["aciq", "max"])
def test_factors_cancel_in_the_deployed_file(net, allocate, clip, weight_bits):
    view, observed, plan, x = start(net, weights=weight_bits, activations=4)
    config = ChannelConfig(clip=clip, allocate=allocate)
    scaled = scale_channels(plan, view, observed, config=config)
    factors = {a.tensor: a.channel_scale for a in scaled.activations if a.channel_scale}
    assert set(factors) == {"a1", "a2"}
    assert [q.weight.input_scale for q in scaled.layers] == [(), factors["a1"], factors["a2"], ()]
    exported = export(net, scaled)
    want = Session(simulate(net, scaled)).run({"x": x})["y"]
    have = Session(exported, optimize=False).run({"x": x})["y"]  # fused kernels round biases to their accumulator
    assert np.mean(np.abs(want - have) > 1e-4 * np.abs(want).max()) < 0.02  # ties of rounding alone
    assert all(layer.integer for layer in inspect_fused(Model(ir_model=exported, source="net", nbytes=0)).layers)


def test_activation_bits_fill_their_quota_of_bins(net):
    view, observed, plan, _ = start(net, weights=8, activations=4)
    scaled = scale_channels(plan, view, observed, config=ChannelConfig(allocate=True))
    (a1,) = [a for a in scaled.activations if a.tensor == "a1"]
    assert sum(2**b for b in a1.channel_bits) == 8 * 2**4
    assert a1.channel_qmax == tuple(2**b - 1 for b in a1.channel_bits)


def test_what_keeps_one_step_is_noted_and_a_simulation_may_have_more(net):
    view, observed, plan, _ = start(net, weights=8, activations=4)
    noted = scale_channels(plan, view, observed).notes
    assert any("'a3' keeps one step" in note and "read it too" in note for note in noted)
    simulated = scale_channels(plan, view, observed, config=ChannelConfig(deployable=False))
    assert {a.tensor for a in simulated.activations if a.channel_scale} == {"a1", "a2", "a3"}
    assert not any(quant.weight.input_scale for quant in simulated.layers)
    with pytest.raises(PlanError, match="pass format='float'"):
        export(net, simulated)


def test_values_that_merely_happened_to_be_positive_keep_one_step(net):
    view = GraphView(net)
    observed = observe(net, open_data(RNG.random((16, 3, 10, 10), np.float32), net))
    recipe = choose_recipe("aciq", True, edge_bits=4, weights=8, activations=4)
    scaled = scale_channels(
        initial_plan(view, recipe, observed), view, observed, config=ChannelConfig(deployable=False)
    )
    x = next(a for a in scaled.activations if a.tensor == "x")
    assert (x.zero_point, x.channel_scale) == (0, ())
    assert "'x' keeps one step for all channels: it takes both signs" in scaled.notes


def test_a_clip_from_above_zero_lets_no_factor_through(model_from_text):
    net = network(model_from_text, "Clip(c2, one, six)")
    view, observed, plan, _ = start(net, weights=8, activations=4)
    scaled = scale_channels(plan, view, observed)
    assert not next(a for a in scaled.activations if a.tensor == "a2").channel_scale
    assert any("does not start at zero" in note for note in scaled.notes)


def test_steps_per_channel_lose_less_than_one_step(model_from_text):
    """Ranges that differ by a factor of 20 between channels, four bits: on average over networks."""
    ratios = []
    for _ in range(6):
        net = network(model_from_text, "Clip(c2, zero, six)")
        view, observed, plan, x = start(net, weights=8, activations=4)
        exact = Session(net.ir_model).run({"x": x})["y"]
        noise = []
        for config in (
            AciqConfig(channel_activations=False),
            AciqConfig(channel_activations=True),
            AciqConfig(channel_activations=True, deployable=False),
        ):
            got = Session(simulate(net, refine(plan, view, observed, config=config))).run({"x": x})["y"]
            noise.append(float(np.mean((got - exact) ** 2)))
        ratios.append(np.array(noise) / noise[0])
    _, channel, simulated = np.mean(ratios, axis=0)
    assert channel < 1
    assert simulated < 1


def test_predicted_error_of_channels(model_from_text):
    net = network(model_from_text, "Relu(c2)")
    view, observed, plan, x = start(net, weights=8, activations=4)
    scaled = scale_channels(plan, view, observed, config=ChannelConfig(deployable=False))
    values = Session(net.ir_model, outputs=["a1"]).run({"x": x})["a1"]
    (grid,) = [a for a in scaled.activations if a.tensor == "a1"]
    step = (grid.scale * np.asarray(grid.channel_scale)).reshape(1, -1, 1, 1)
    measured = np.mean((values - step * np.clip(np.rint(values / step), 0, 15)) ** 2, axis=(0, 2, 3))
    ratio = channel_errors(grid, observed["a1"]) / measured
    assert 0.6 < np.exp(np.log(ratio).mean()) < 1.6
    reports = layer_reports(view, scaled, observed, open_data(x, net))
    assert all(abs(r.predicted_sqnr_db - r.simulated_sqnr_db) < 2 for r in reports)


def test_input_scale_must_fit_the_weight(net):
    quant = dataclasses.replace(start(net)[2].layers[1].weight, input_scale=(1.0, 2.0, 3.0))
    with pytest.raises(PlanError, match="do not fit"):
        weights.codes(np.ones((8, 2, 3, 3), np.float32), quant)


@pytest.mark.parametrize("deployable", [True, False])
def test_factors_are_the_square_roots_of_the_channels_ranges(net, deployable):
    """The root shares the loss between a tensor and the weights that read it; a simulation loses nothing to weights."""
    view, observed, plan, _ = start(net, weights=8, activations=4)
    scaled = scale_channels(plan, view, observed, config=ChannelConfig(clip="max", deployable=deployable))
    (a1,) = [a for a in scaled.activations if a.tensor == "a1"]
    highest = observed["a1"].channels.max
    assert highest.max() > 4 * highest.min() > 0
    ratio = highest / highest.max()
    np.testing.assert_allclose(a1.channel_scale, np.sqrt(ratio) if deployable else ratio, rtol=1e-5)


def test_the_common_step_lies_between_those_that_channels_need(net):
    """A channel of factor f needs its step over f; with roots as factors, that is f times the largest step."""
    view, observed, plan, _ = start(net, weights=8, activations=4)
    for clip in ("aciq", "max"):
        made = scale_channels(plan, view, observed, config=ChannelConfig(clip=clip)).activations
        for grid in (a for a in made if a.channel_scale):
            highest = observed[grid.tensor].channels.max
            ends = highest if clip == "max" else np.minimum(channel_prior(observed[grid.tensor]).clips(4), highest)
            most = ends.max() / 15
            if clip == "max":
                assert grid.scale == pytest.approx(most, rel=1e-5), "no channel is clipped"
            assert most * min(grid.channel_scale) * 0.998 <= grid.scale <= most * 1.002


def test_tensors_that_cannot_carry_factors_say_why(net):
    """One reason each: a sum that reads it, weights without a scale per channel, a reader that is no convolution."""
    view, observed, plan, _ = start(net, weights=8, activations=4)
    single = plan.map_layers(
        lambda q: dataclasses.replace(
            q, weight=dataclasses.replace(q.weight, scale=(0.1,), zero_point=(0,), granularity=Granularity())
        )
    )
    notes = scale_channels(single, view, observed).notes
    assert any("the weights before it have no scale per channel" in note for note in notes)
    unwritten = dataclasses.replace(plan, layers=tuple(q for q in plan.layers if q.op == "Conv")[1:])
    notes = scale_channels(unwritten, view, observed).notes
    assert any("no quantized convolution writes it" in note for note in notes)
    unread = dataclasses.replace(plan, layers=plan.layers[:1])
    assert not any(a.channel_scale for a in scale_channels(unread, view, observed).activations)
