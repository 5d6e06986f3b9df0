"""Who ruins an output is found at the output, gives way in the cheapest order, and the file keeps what was promised."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
import qmath
from qgraph.assess.latency import Latency
from qgraph.assess.output_quality import OutputQuality
from qgraph.cli import main
from qgraph.errors import QualityWarning
from qgraph.graph.sites import GraphView
from qgraph.jobs import guarded
from qgraph.jobs.guarded import parse_target
from qgraph.jobs.plan_judge import PlanJudge, margin, surely_positive
from qgraph.jobs.prepare import gather
from qgraph.lowering.lower import lower
from qgraph.lowering.simulate import simulate
from qgraph.methods.guard.concessions import Concession, apply_concessions, without_islands
from qgraph.methods.guard.costs import Costs
from qgraph.methods.guard.factors import without_lost_factors
from qgraph.methods.guard.guard import Effort, Guarded
from qgraph.methods.guard.search import Search
from qgraph.methods.guard.switches import Grid, Switches, grids_of
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import activation_grid, weight_grid
from qgraph.plan.plan import LayerQuant, QuantPlan
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data
from tests.conftest import DEMO

RNG = np.random.default_rng(0)

# the logarithm of a power spectrum: every layer is fine, and the output is not
SPECTRUM = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 64] x) => (float[N, 8] y) <float[64, 16] re, float[64, 16] im, float[16, 8] mel, float[1] floor> {
    a = MatMul(x, re)
    b = MatMul(x, im)
    aa = Mul(a, a)
    bb = Mul(b, b)
    power = Add(aa, bb)
    bands = MatMul(power, mel)
    bounded = Max(bands, floor)
    y = Log(bounded)
}
"""
# the difference of two products that are nearly equal: rounded weights leave nothing of it
DIFFERENCE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16] x) => (float[N, 16] y, float[N, 16] z) <float[16, 16] u, float[16, 16] v, float[16, 16] w> {
    a = MatMul(x, u)
    b = MatMul(x, v)
    y = Sub(a, b)
    z = MatMul(x, w)
}
"""


@pytest.fixture
def spectrum(model_from_text):
    angles = 2 * np.pi * np.outer(np.arange(64), np.arange(16)) / 64
    window = np.hanning(64)[:, None]
    mel = np.abs(np.random.default_rng(0).normal(size=(16, 8)))
    constants = {"re": np.cos(angles) * window, "im": np.sin(angles) * window, "mel": mel, "floor": np.array([1e-6])}
    model = model_from_text(SPECTRUM, **{name: array.astype(np.float32) for name, array in constants.items()})
    rng = np.random.default_rng(1)
    loudness = 10.0 ** rng.uniform(-3, 0, size=(96, 1))
    return model, {"x": (loudness * rng.normal(size=(96, 64))).astype(np.float32)}


@pytest.fixture
def difference(model_from_text):
    rng = np.random.default_rng(0)
    u, w = rng.normal(size=(2, 16, 16))
    v = u + 0.02 * rng.normal(size=(16, 16))
    constants = {name: array.astype(np.float32) for name, array in {"u": u, "v": v, "w": w}.items()}
    return model_from_text(DIFFERENCE, **constants), {"x": rng.normal(size=(64, 16)).astype(np.float32)}


def worst_db(result, data):
    """Of the saved model in onnxruntime beside the float one, over all samples."""
    floats, small = Session(result.net.ir_model).run(data), Session(result.model).run(data)
    noise = {name: np.square(small[name] - want.astype(np.float64)).sum() for name, want in floats.items()}
    return min(10 * np.log10(np.square(want).sum() / max(noise[name], 1e-30)) for name, want in floats.items())


def test_a_ruined_output_is_repaired(spectrum):
    model, data = spectrum
    ruined = qgraph.quantize(model, data, guard="off", activations=8)
    assert ruined.quality.worst.sqnr_db < 15
    assert ruined.given_up is None
    result = qgraph.quantize(model, data, activations=8)
    assert worst_db(result, data) > 20
    assert result.given_up.before.worst.sqnr_db == pytest.approx(ruined.quality.worst.sqnr_db)
    assert {c.output for c in result.given_up.concessions} == {"y"}
    gone = {a.tensor for a in ruined.plan.activations} - {a.tensor for a in result.plan.activations}
    assert gone
    assert any("power" in note for note in result.plan.notes)
    assert result.nbytes < model.ByteSize()


BARELY = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 1, 1, 8] few, float[N, 1, 1, 256] many) => (float[N, 1, 1, 32] y)
    <float[8, 32] u, float[256, 256] v, float[256, 32] w> {
    a = MatMul(few, u)
    b = MatMul(many, v)
    c = Relu(b)
    d = MatMul(c, w)
    y = Add(a, d)
}
"""


def test_what_is_cheap_is_given_for_dB_to_spare(model_from_text):
    """A product of eight inputs with an outlier makes nearly all of the noise, and is hardly any of the work."""
    rng = np.random.default_rng(3)
    constants = {"u": rng.normal(size=(8, 32)), "v": rng.normal(size=(256, 256)) / 16, "w": rng.normal(size=(256, 32))}
    model = model_from_text(BARELY, **{name: (array / 16).astype(np.float32) for name, array in constants.items()})
    data = {"few": rng.normal(size=(128, 1, 1, 8)), "many": rng.normal(size=(128, 1, 1, 256))}
    data["few"][1, 0, 0, 0] = 60  # what the grid of all must reach
    data = {name: array.astype(np.float32) for name, array in data.items()}
    usual = {name: array[2:] for name, array in data.items()}
    before = qgraph.quantize(model, data, guard="off", method="minmax")
    assert 20 < worst_db(before, usual) < 26
    result = qgraph.quantize(model, data, method="minmax")
    assert worst_db(result, usual) > worst_db(before, usual) + 5
    assert [concession.grid.name for concession in result.given_up.concessions] == ["few"]
    assert len(result.plan.activations) > 1
    assert result.nbytes <= before.nbytes


def test_what_holds_is_left_alone(digits, digits_calibration):
    result = qgraph.quantize(digits, digits_calibration)
    assert result.given_up is None
    assert result.plan == qgraph.quantize(digits, digits_calibration, guard="off").plan


def test_a_plan_that_ruins_an_output_is_applied_with_a_warning(spectrum, recwarn):
    model, data = spectrum
    plan = qgraph.quantize(model, data, guard="off").plan
    with pytest.warns(QualityWarning, match="below the target of 25 dB.* the grids are those of the plan"):
        applied = qgraph.apply(model, plan, data)
    assert applied.quality.worst.sqnr_db < 15
    recwarn.clear()
    qgraph.apply(model, plan)
    qgraph.apply(model, plan, data, measure=False)
    qgraph.apply(model, qgraph.quantize(model, data).plan, data)
    assert not [w for w in recwarn if w.category is QualityWarning], "on noise, not measured, or good enough"


def test_weights_go_where_they_alone_are_to_blame(difference):
    model, data = difference
    result = qgraph.quantize(model, data)
    assert worst_db(result, data) > 20
    kept = {entry.name for entry in result.plan.kept_float}
    written = {str(node.name): str(node.outputs[0].name) for node in result.net.ir_model.graph}
    assert {written[name] for name in kept} >= {"a", "b"}
    assert [written[layer.name] for layer in result.plan.layers] == ["z"]


def test_a_target_of_ones_own(digits, digits_calibration):
    with pytest.warns(QualityWarning, match="guard="):
        result = qgraph.quantize(digits, digits_calibration, weights=2, activations=2)
    assert result.given_up is None
    acted = qgraph.quantize(digits, digits_calibration, weights=2, activations=2, guard=25)
    assert acted.quality.worst.sqnr_db >= 25 > result.quality.worst.sqnr_db
    assert acted.given_up.target_db == 25


def test_factors_go_with_a_layer_that_carries_them(digits, digits_calibration):
    settings = {"aciq.channel_activations": True}
    result = qgraph.quantize(
        digits, digits_calibration, weights=4, activations=4, settings=settings, limit=32, measure=False, guard="off"
    )
    plan, view = result.plan, GraphView(result.net)
    assert sum(bool(a.channel_scale) for a in plan.activations) > 1
    assert without_lost_factors(plan, view) == plan
    for gone in plan.layers:
        part = dataclasses.replace(plan, layers=tuple(q for q in plan.layers if q is not gone))
        mended = without_lost_factors(part, view)
        lower(result.net, mended, format="qdq")
        assert {a.tensor for a in mended.activations} == {a.tensor for a in plan.activations}


def test_a_table_that_stays_float_does_so_for_all_that_read_it(model_from_text):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (int64[N, 16] x) => (float[N, 16, 600] y) <float[600, 48] words, float[48, 48] w> {
        e = Gather(words, x)
        h = MatMul(e, w)
        t = Tanh(h)
        turned = Transpose<perm = [1, 0]>(words)
        y = MatMul(t, turned)
    }"""
    rng = np.random.default_rng(0)
    drawn = {"words": rng.normal(size=(600, 48)), "w": rng.normal(size=(48, 48)) / 7}
    model = model_from_text(text, **{name: array.astype(np.float32) for name, array in drawn.items()})
    data = {"x": rng.integers(0, 600, size=(96, 16))}
    result = qgraph.quantize(model, data, activations=8, measure=False)
    told = Concession(grid=Grid("weight", "Gather_e"), how="float", alone_db=9.0, output="y")
    view = GraphView(result.net)
    plan = apply_concessions(result.plan, view, [told], {})
    assert [layer.name for layer in plan.layers] == ["MatMul_h"]
    assert [(kept.name, kept.bytes) for kept in plan.kept_float] == [("Gather_e", 4 * 600 * 48), ("MatMul_y", 0)]
    assert result.with_plan(plan).nbytes < model.ByteSize()
    few = qgraph.quantize(model, data, activations=8, weights=6, edge_bits=6, guard=15)
    assert few.given_up.goal == "98% of the classes"


def test_the_command_says_what_gave_way(spectrum, tmp_path, capsys):
    model, data = spectrum
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **data)
    command = ["quantize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "q.onnx"), "--data", str(tmp_path / "d.npz")]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["guard"]["target_db"] == 20
    assert {c["how"] for c in said["guard"]["concessions"]} <= {"whole range", "weights alone", "float"}
    assert min(o["sqnr_db"] for o in said["quality"]["outputs"]) > 20
    assert main(command) == 0
    assert "gave way for 20 dB" in capsys.readouterr().out
    assert main([*command, "--guard", "off", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guard"] is None
    assert main([*command, "--guard", "loud"]) == 2
    assert "--guard is a number of dB such as 20, or off" in capsys.readouterr().err


def test_switches_inject_one_error_at_a_time(spectrum):
    model, data = spectrum
    result = qgraph.quantize(model, data, guard="off", activations=8)
    net, plan = result.net, result.plan
    (batch,) = open_data({"x": data["x"][:16]}, net).batches(16)
    switches = Switches(net, plan, [batch])
    want = Session(net.ir_model).run(batch.feeds)["y"].astype(np.float64)
    assert switches.noise(()) == 0
    for grid in grids_of(plan):
        layers = tuple(q for q in plan.layers if Grid("weight", q.name) == grid)
        activations = tuple(a for a in plan.activations if Grid("tensor", a.tensor) == grid)
        layers = tuple(LayerQuant(name=q.name, op=q.op, weight=q.weight) for q in layers)
        alone = QuantPlan(model=net.digest, recipe="", layers=layers, activations=activations)
        have = Session(simulate(net, alone)).run(batch.feeds)["y"]
        expected = np.square(have - want).sum() / np.square(want).sum()
        np.testing.assert_allclose(switches.noise({grid}), expected, rtol=1e-3, atol=1e-12)


def test_most_noise_for_the_least_cost_goes_first(spectrum):
    model, data = spectrum
    result = qgraph.quantize(model, data, guard="off", activations=8)
    view = GraphView(result.net)
    (batch,) = open_data({"x": data["x"][:16]}, result.net).batches(16)
    search = Search(result.plan, view, [batch], queries=1000, ranges={})
    costs = Costs.of(view, result.plan)
    ways = {grid: "weights alone" if grid.kind == "tensor" else "float" for grid in grids_of(result.plan)}
    gains = {grid: search.noise(frozenset({grid}))[0] / costs[grid, how] for grid, how in ways.items()}
    (first,) = search.within(1e-12, tensors=1)
    assert first.grid == max((grid for grid in gains if grid.kind == "tensor"), key=gains.__getitem__)
    assert first.alone_db == pytest.approx(-10 * np.log10(search.noise(frozenset({first.grid}))[0]))
    everything = search.within(1e-12)
    assert {c.grid for c in everything} > {Grid("weight", layer.name) for layer in result.plan.layers}


def searched(network, queries):
    """A search of so many measurements, the plan's grids, and the measurements made so far."""
    model, data = network
    result = qgraph.quantize(model, data, guard="off", activations=8)
    (batch,) = open_data(data, result.net, limit=16).batches(16)
    made = []
    search = Search(
        result.plan, GraphView(result.net), [batch], queries=queries, ranges={}, tick=lambda: made.append(1)
    )
    return search, [grid for grid in grids_of(result.plan) if grid.kind == "tensor"], made


def test_a_search_measures_no_more_than_it_may(digits):
    search, tensors, made = searched((digits, DEMO / "digits_calibration.npz"), 1000)
    everything, measured = search.culprits(tensors, 1e-7), len(made)
    assert not search.stopped
    assert measured < 2 * len(tensors) - 1, "some halves have what the others leave"
    most = max(everything, key=lambda grid: everything[grid].max())
    np.testing.assert_allclose(everything[most], search.switches.noise({most}), rtol=0.5)
    search, tensors, made = searched((digits, DEMO / "digits_calibration.npz"), measured - 1)
    few = search.culprits(tensors, 1e-7)
    assert search.stopped
    assert len(made) == measured - 1
    assert few.keys() < everything.keys()
    assert most in few, "the noisiest sets are halved first"


def test_weights_have_switches_only_where_they_are_searched(spectrum):
    search, _, _ = searched(spectrum, 1000)
    assert {grid.kind for grid in search.switches.inputs} == {"tensor"}
    assert {grid.kind for grid in search.with_weights.inputs} == {"tensor", "weight"}
    culprits = search.culprits([grid for grid in grids_of(search.plan) if grid.kind == "weight"], 1e-12)
    assert culprits


def test_it_says_where_the_guard_stopped(difference, monkeypatch):
    model, data = difference
    monkeypatch.setattr("qgraph.jobs.guarded.REPAIR", Effort(samples=4, queries=1))
    with pytest.warns(QualityWarning, match="stopped after 1 measurements: guard=20.0 lets it make 4 times as many"):
        result = qgraph.quantize(model, data)
    assert any("stopped after 1 measurements" in note for note in result.plan.notes)


def test_costs_are_shares_of_products_and_bytes(model_from_text):
    weight = np.ones((2, 2, 1, 1), np.float32)
    view = GraphView(normalise(load(model_from_text(CHAIN, u=weight, v=weight))))
    plan = chain_plan(view, "xabcy")
    costs = Costs.of(view, plan)
    first = view.layers[0].name
    assert costs[Grid("weight", first), "float"] == pytest.approx(1e-4 + 1 / 3 + 2 / 3)
    assert costs[Grid("tensor", "x"), "weights alone"] == pytest.approx(1e-4 + 1 / 3)
    assert costs[Grid("operand", first), "weights alone"] == pytest.approx(1e-4 + 1 / 3)
    assert costs[Grid("tensor", "a"), "weights alone"] == pytest.approx(1e-4 + 2 / 3), "written by one, read by another"
    assert costs[Grid("tensor", "a"), "whole range"] < 1e-4


CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) <float[2, 2, 1, 1] u, float[2, 2, 1, 1] v> {
    a = Conv(x, u)
    b = Conv(a, v)
    c = Add(a, b)
    y = Conv(c, u)
}
"""


def chain_plan(view, tensors):
    weight = weight_grid(
        np.full(2, -1.0), np.full(2, 1.0), bits=8, granularity=qmath.Granularity(axis=0), symmetric=True
    )
    layers = tuple(LayerQuant(name=layer.name, op="Conv", weight=weight) for layer in view.layers)
    grids = tuple(activation_grid(tensor, -1, 1, bits=8) for tensor in tensors)
    return QuantPlan(model=view.model.digest, recipe="", layers=layers, activations=grids)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("xabcy", "xabcy"),
        ("abcy", "abcy"),  # the first convolution is float and a is read by integers
        ("xbcy", "cy"),  # none writes or reads integers at a: x and b have nobody left
        ("xaby", "xab"),  # what follows c is float
        ("xabc", "xabc"),  # y is no convolution on integers, and c is still written by Add
        ("y", ""),
    ],
)
def test_no_tensor_is_rounded_for_nothing(model_from_text, given, left):
    weight = np.ones((2, 2, 1, 1), np.float32)
    net = normalise(load(model_from_text(CHAIN, u=weight, v=weight)))
    view = GraphView(net)
    assert "".join(a.tensor for a in without_islands(chain_plan(view, given), view).activations) == left


def test_margin_of_outputs():
    assert margin([OutputQuality(name="a", sqnr_db=25.0), OutputQuality(name="b", sqnr_db=18.0)], 20.0) == -2.0
    assert margin([OutputQuality(name="a", exact=True)], 20.0) > 0
    assert margin([OutputQuality(name="a", problem="NaN")], 20.0) < -100
    scores = {"sqnr_db": 30.0, "same_argmax": 0.9}
    assert margin([OutputQuality(name="a", decisions=100, **scores)], 20.0) < 0
    assert margin([OutputQuality(name="a", decisions=10, **scores)], 20.0) > 0, "one of ten is chance"


def test_targets():
    assert parse_target(None) == 20
    assert parse_target("off") is None
    assert parse_target("32.5") == 32.5


# the largest of many values decides: what a clip cuts off is all that counts
LARGEST = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 4096] x) => (float[N, 8] y) <float[8, 4, 1] w, float[8, 8] v> {
    a = Conv(x, w)
    b = Relu(a)
    c = ReduceMax<axes=[2], keepdims=0>(b)
    y = MatMul(c, v)
}
"""


def test_whole_ranges_where_the_largest_value_decides(model_from_text):
    rng = np.random.default_rng(2)
    constants = {"w": rng.normal(size=(8, 4, 1)), "v": rng.normal(size=(8, 8))}
    model = model_from_text(LARGEST, **{name: array.astype(np.float32) for name, array in constants.items()})
    data = {"x": rng.normal(size=(48, 4, 4096)).astype(np.float32)}
    data["x"][:, 0, 7] = rng.choice([-12, 12], size=48)  # rarer than any percentile keeps
    clipped = qgraph.quantize(model, data, guard="off", clip="percentile")
    result = qgraph.quantize(model, data, clip="percentile")
    assert worst_db(result, data) > worst_db(clipped, data) + 3
    assert "whole ranges measured no worse than clips" in result.plan.notes
    assert result.given_up is None


def test_plans_are_compared_sample_by_sample(digits, digits_calibration):
    given = gather(digits, digits_calibration, Job(), limit=24)
    judge = PlanJudge(given)
    fine = given.plan()
    coarse = fine.map_activations(lambda a: activation_grid(a.tensor, a.low, a.high, bits=5, role=a.role))
    assert judge.clearly_better(fine, coarse)
    assert not judge.clearly_better(coarse, fine)
    assert not judge.clearly_better(fine, fine)
    noise = judge._measured(coarse).noise[0]
    assert len(noise) == given.samples.count > 8, "one figure for each sample, not for each run"
    assert judge.margin(coarse, 20.0) == pytest.approx(-10 * np.log10(noise.sum()) - 20, abs=1e-6)


def test_a_lead_must_not_rest_on_a_few_samples():
    steady = np.full(32, 1.0) + 0.1 * RNG.normal(size=32)
    assert surely_positive(steady)
    assert not surely_positive(-steady)
    one_decides = np.full(32, -0.01)
    one_decides[3] = 32.0
    assert one_decides.mean() > 0.9
    assert not surely_positive(one_decides)
    assert not surely_positive(steady[:1]), "one sample proves nothing"
    # t = mean / (sd / sqrt(4)) for 1, 2, 3, 4 is 3.873, above t(3, .95) = 2.353; for -1, 2, 3, 4 it is 1.852
    assert surely_positive(np.array([1.0, 2.0, 3.0, 4.0]))
    assert not surely_positive(np.array([-1.0, 2.0, 3.0, 4.0]))


@pytest.fixture
def timed(monkeypatch):
    """Latencies as a test wants them, one verdict after the other."""

    def set_latencies(*latencies, seconds=0.01):
        left = iter(latencies)
        monkeypatch.setattr("qgraph.jobs.no_slower.SLOWER", 1.02)
        monkeypatch.setattr("qgraph.assess.verdict.latency", lambda *_: Latency(next(left), seconds))

    return set_latencies


def runs_on_integers(result):
    return bool(result.plan.activations) or any(layer.runs == "dynamic" for layer in result.plan.layers)


def test_integers_slower_than_floats_are_not_written(spectrum, timed):
    model, data = spectrum
    timed(1.3, 1.0)
    result = qgraph.quantize(model, data, guard="off")
    assert not runs_on_integers(result)
    assert result.quality.latency == 1.0
    assert any("1.30 of the float model's time" in note for note in result.plan.notes)
    assert {layer.weight_bits for layer in result.layers} == {8}
    timed(1.3, 1.31)
    assert runs_on_integers(qgraph.quantize(model, data, guard="off")), "floats are no faster"
    timed(1.02)
    assert runs_on_integers(qgraph.quantize(model, data, guard="off"))
    timed(1.3, seconds=1e-5)
    assert runs_on_integers(qgraph.quantize(model, data, guard="off")), "too short to be timed"
    timed(1.3)
    with pytest.warns(QualityWarning, match="activations=None keeps the weights small alone"):
        assert qgraph.quantize(model, data, guard="off", activations=8).plan.activations


def test_weights_in_bodies_have_switches():
    """A small weight stays in its body, where nothing of the main graph can read it."""
    weights = {name: RNG.normal(size=(16, 16 if name == "w" else 8)).astype(np.float32) for name in ("w", "v")}
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("t", "e")]
    then, other = (
        helper.make_graph([helper.make_node("MatMul", ["h", w], [out.name], name="inside")], "b", [], [out], [constant])
        for w, out, constant in (
            ("v", inner[0], numpy_helper.from_array(weights["v"], "v")),
            ("u", inner[1], numpy_helper.from_array(-weights["v"], "u")),
        )
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=other),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16]),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(weights["w"], "w")],
    )
    net = normalise(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    data = open_data({"x": RNG.normal(size=(4, 16)).astype(np.float32), "cond": np.array(True)}, net)
    names = [layer.name for layer in GraphView(net).by_name.values() if layer.weight_only]
    plan = qgraph.quantize(net, activations=None, measure=False).plan
    switches = Switches(net, plan, list(data.batches(4)), threads=1)
    taken, left = (switches.noise({Grid("weight", name)})[0] for name in sorted(names, reverse=True))
    assert 1e-6 < taken < 1e-3
    assert left == 0, "a branch that is not taken"


class _Easy:
    """Judges every plan 8 dB above its target."""

    def margin(self, plan, target):
        return 8.0

    def above(self, target):
        return lambda plan: 8.0

    def worst_db(self, plan):
        return 28.0

    def few(self, most):
        return []


def a_task(monkeypatch, *, stopped):
    """A task of the guard whose search gives up nothing, and the targets that it searched for."""
    wanted = []

    def give_up(search, judge, *, target_db):
        wanted.append(target_db)
        return Guarded(plan=search.plan, concessions=(), margin=-1.0)

    monkeypatch.setattr(guarded, "guard", give_up)
    monkeypatch.setattr(guarded, "Search", lambda plan, *_, **__: SimpleNamespace(plan=plan, stopped=stopped))
    monkeypatch.setattr(guarded, "_ranges", lambda given, plan: {})
    monkeypatch.setattr(guarded, "_margin", lambda result, target: -4.0)
    given = SimpleNamespace(view=None, observed=None, job=Job())
    return guarded._Task(given=given, judge=_Easy(), target=20.0, before=None, insists=False), wanted


def test_held_out_samples_may_be_harder(digits, monkeypatch):
    """Where calibration samples are well above a target that held-out ones miss, the guard aims higher by as much."""
    task, wanted = a_task(monkeypatch, stopped=False)
    repaired = task.repaired(qgraph.quantize(digits, activations=None, measure=False))
    assert wanted == [20.0, 33.0]
    assert repaired.given_up is None, "nothing was given up"


def test_a_guard_that_stops_says_so(digits, monkeypatch):
    task, _ = a_task(monkeypatch, stopped=True)
    with pytest.warns(QualityWarning, match="the guard stopped after"):
        repaired = task.repaired(qgraph.quantize(digits, activations=None, measure=False))
    assert any("the guard stopped after" in note for note in repaired.plan.notes)


@pytest.mark.parametrize(
    ("made", "spare", "left"),
    [
        (12, lambda count: count - 5.0, 6),
        (12, lambda count: 15.0 if count == 12 else -1.0, 12),
        (12, lambda count: count - 9.0, 12),  # little to spare: nothing to give back
        (4, lambda count: 15.0, 4),  # few are for a margin
    ],
    ids=["what is not needed", "all needed", "little spare", "few"],
)
def test_what_was_not_needed_is_given_back(digits, monkeypatch, made, spare, left):
    task, _ = a_task(monkeypatch, stopped=False)
    monkeypatch.setattr(guarded, "_margin", lambda result, target: np.inf)
    monkeypatch.setattr(task.judge, "margin", lambda plan, target: spare(len(plan.notes)), raising=False)

    def noted(plan, view, concessions, ranges):
        return dataclasses.replace(plan, notes=tuple(map(str, concessions)))

    monkeypatch.setattr(guarded, "apply_concessions", noted)
    start = qgraph.quantize(digits, activations=None, measure=False)
    concessions = tuple(range(made))
    given_up = guarded.GivenUp(20.0, "20 dB", concessions, None)
    plan = noted(start.plan, None, concessions, {})
    repaired = dataclasses.replace(start, plan=plan, given_up=given_up)
    found = task.trimmed(repaired, start, SimpleNamespace(view=None, ranges={}))
    assert len(found.plan.notes) == len(found.given_up.concessions) == left
    assert found.given_up.concessions == concessions[:left], "the first are worth most"
