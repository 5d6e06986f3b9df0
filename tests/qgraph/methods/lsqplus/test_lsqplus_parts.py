"""The small parts of fine-tuning: what starts a grid, what a batch holds, what decays, what is said."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

import qmath
from qgraph.errors import DataError, UsageError
from qgraph.gradient.layout import blocked
from qgraph.graph.sites import GraphView
from qgraph.methods.lsqplus.batches import augment, open_feed
from qgraph.methods.lsqplus.biases import settle_biases
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.configurations import offset_kind
from qgraph.methods.lsqplus.holdout import Judgement
from qgraph.methods.lsqplus.initialise import initialise
from qgraph.methods.lsqplus.optimise import decayed
from qgraph.methods.lsqplus.parameters import absorb, rms
from qgraph.methods.lsqplus.trained import put
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.codes import accumulator_scale, quantized
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(31)
HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('
PRODUCT = "float[N,6] x, float[6,5] w, float[6] b, float[5,3] v) => (float[N,3] y) {"
PRODUCT += " s = Add(x, b)  [first] h = MatMul(s, w)  r = Relu(h)  [second] y = MatMul(r, v) }"


@pytest.fixture
def started(model_from_text):
    """A network of two products, a plan of three bits, and what was observed on samples."""
    weights = {"w": RNG.normal(0.1, 0.3, (6, 5)), "v": RNG.laplace(0, 0.3, (5, 3)), "b": np.linspace(-1, 1, 6)}
    net = normalise(load(model_from_text(HEAD + PRODUCT, **{n: a.astype(np.float32) for n, a in weights.items()})))
    view = GraphView(net)
    observed = observe(net, open_data(RNG.normal(size=(256, 6)).astype(np.float32), net))
    columns = qmath.Granularity(axis=1)
    layers = (
        LayerQuant(name="first", op="MatMul", weight=WeightQuant(bits=3, scale=(1.0,) * 5, granularity=columns)),
        LayerQuant(name="second", op="MatMul", weight=WeightQuant(bits=3, scale=(1.0,))),
    )
    grids = tuple(ActivationQuant(tensor=name, bits=3, scale=1.0, zero_point=2) for name in ("s", "r"))
    return view, observed, QuantPlan(model=net.digest, recipe="", layers=layers, activations=grids)


@pytest.mark.parametrize("method", ["lsqplus", "lsq", "minmax"])
def test_grids_start_where_the_paper_says(started, method):
    view, observed, plan = started
    made = initialise(plan, view, observed, config=LsqPlusConfig(initialisation=method))
    for quant in made.layers:
        weight = view.by_name[quant.name].weight_array().astype(np.float64)
        columns = weight.T if quant.name == "first" else weight.reshape(1, -1)
        spread, mean = 3 * columns.std(1), columns.mean(1)
        expected = {
            "lsqplus": np.maximum(np.abs(mean - spread), np.abs(mean + spread)) / 4,
            "lsq": 2 * np.abs(columns).mean(1) / np.sqrt(3),
            "minmax": np.maximum(columns.max(1) / 3, columns.min(1) / -4),
        }[method]
        np.testing.assert_allclose(quant.weight.scale, expected, rtol=1e-6)
        assert not quant.weight.symmetric
    for grid in made.activations:
        seen, highest = observed[grid.tensor], 7
        if method == "minmax":
            bottom = 0.0 if grid.tensor == "r" else float(seen.min)
            assert grid.scale == pytest.approx((seen.max - bottom) / highest, rel=1e-5)
            assert grid.offset == pytest.approx(bottom, abs=1e-6)
        if method == "lsq":
            centers, counts = seen.histogram.centers, seen.histogram.counts
            mean = (np.abs(centers) * counts).sum() / counts.sum()
            assert (grid.scale, grid.offset) == (pytest.approx(2 * mean / np.sqrt(highest), rel=1e-5), 0.0)
        assert grid.zero_point == 0, "configurations 1 and 4 have codes from 0"


def test_a_fixed_minimum_is_the_lowest_level(started):
    view, observed, plan = started
    for number, lowest in ((3, -4), (4, 0)):
        config = LsqPlusConfig(offsets="minimum", configuration=number)
        made = initialise(plan, view, observed, config=config)
        for grid in made.activations:
            assert grid.zero_point == -lowest
            assert grid.low == pytest.approx(float(observed[grid.tensor].min), abs=1e-6)
            assert grid.scale < (observed[grid.tensor].max - observed[grid.tensor].min) / 7


def test_eight_bits_and_given_plans_start_as_they_are(started):
    view, observed, plan = started
    assert initialise(plan, view, observed, config=LsqPlusConfig(initialisation="plan")) is plan
    wide = plan.map_layers(lambda q: dataclasses.replace(q, weight=dataclasses.replace(q.weight, bits=8)))
    wide = wide.map_activations(lambda grid: dataclasses.replace(grid, bits=8))
    assert initialise(wide, view, observed) == wide
    assert initialise(plan, view, None).activations == plan.activations


def test_weight_decay_pulls_towards_zero_where_it_may():
    values, on = np.array([2.0, -2.0, 2.0], np.float32), np.array([True, True, False])
    decayed(values, np.array([0.1, 0.2, 0.1], np.float32), 0.5, on)
    np.testing.assert_allclose(values, [2 * 0.95, -2 * 0.9, 2.0])
    decayed(values, np.ones(3, np.float32), 0.0, on)
    np.testing.assert_allclose(values, [2 * 0.95, -2 * 0.9, 2.0])


FEED = """float[N,3,8,8] x, float[N,4] z, float[4,2] w) => (float[N,3,8,8] a, float[N,2] y) { a = Neg(x)
  y = MatMul(z, w) }"""


def test_only_images_are_augmented(model_from_text):
    net = load(model_from_text(HEAD + FEED, w=np.ones((4, 2), np.float32)))
    given = {"x": RNG.normal(size=(40, 3, 8, 8)), "z": RNG.normal(size=(40, 4)), "labels": np.arange(40) % 2}
    data = open_data(
        {name: np.asarray(a, np.int64 if name == "labels" else np.float32) for name, a in given.items()}, net
    )
    plain, changed = (open_feed(data, LsqPlusConfig(batch=8, holdout=0.1, augment=on), seed=3) for on in (False, True))
    assert plain.steps == 36 // 8
    for epoch, step in ((0, 0), (1, 2)):
        before, after = plain.batch(epoch, step), changed.batch(epoch, step)
        assert before.count == after.count == 8
        np.testing.assert_array_equal(before.labels, after.labels)
        np.testing.assert_array_equal(before.feeds["z"], after.feeds["z"])
        assert not np.array_equal(before.feeds["x"], after.feeds["x"])
        assert set(after.feeds["x"].ravel()) <= set(before.feeds["x"].ravel())


def test_shifts_reach_an_eighth_and_repeat_the_border():
    """Of a ramp, so that every picture tells its own shift."""
    ramp = np.broadcast_to(np.arange(32.0, dtype=np.float32)[:, None], (400, 1, 32, 16)).copy()
    moved = augment(ramp, np.random.default_rng(0))
    offsets = ramp[:, 0, 16, 0] - moved[:, 0, 16, 0]
    assert set(offsets.tolist()) == set(range(-4, 5))
    for picture, by in zip(moved[:, 0, :, 3], offsets, strict=True):
        np.testing.assert_array_equal(picture, np.clip(np.arange(32) - by, 0, 31))
    across = np.broadcast_to(np.arange(16.0, dtype=np.float32), (400, 1, 8, 16)).copy()
    rows = augment(across, np.random.default_rng(0))[:, 0, 0]
    mirrored = rows[:, 0] > rows[:, -1]
    assert 0.4 < mirrored.mean() < 0.6
    steps = np.where(mirrored, rows[:, ::-1][:, 8], rows[:, 8]) - 8
    assert set(steps.tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_what_is_held_out_and_what_a_batch_needs(model_from_text):
    net = load(model_from_text(HEAD + FEED, w=np.ones((4, 2), np.float32)))
    data = open_data({"x": np.zeros((20, 3, 8, 8), np.float32), "z": np.zeros((20, 4), np.float32)}, net)
    feed = open_feed(data, LsqPlusConfig(batch=16, holdout=0.2), seed=0)
    assert (len(feed.held_out), len(feed.training), feed.steps) == (4, 16, 1)
    assert sorted([*feed.held_out, *feed.training]) == list(range(20))
    assert [batch.count for batch in feed.held_out_batches(3)] == [3, 1]
    with pytest.raises(DataError, match="4 are held out: too few for a batch of 17"):
        open_feed(data, LsqPlusConfig(batch=17, holdout=0.2), seed=0)


@pytest.mark.parametrize(("count", "batch"), [(20, 18), (45, 32), (1, 1), (100, 64)])
def test_few_samples_are_one_batch_by_default(model_from_text, count, batch):
    net = load(model_from_text(HEAD + FEED, w=np.ones((4, 2), np.float32)))
    data = open_data({"x": np.zeros((count, 3, 8, 8), np.float32), "z": np.zeros((count, 4), np.float32)}, net)
    feed = open_feed(data, LsqPlusConfig(), seed=0)
    assert (feed.config.batch, feed.steps) == (batch, 1)
    assert feed.config.batch % feed.config.shard == 0
    assert feed.batch(0, 0).count == batch


def test_what_a_judgement_says():
    assert str(Judgement(loss=1.0, distance=0.25, top1=91.5)) == "held-out accuracy 91.50 %"
    assert str(Judgement(loss=1.0, distance=0.25, top1=None)) == "held-out distance 0.2500"
    assert str(Judgement(loss=1.0, distance=None, top1=None)) == ""


READERS = {
    "y = MatMul(s, w)": "real",
    "t = Relu(s)  y = MatMul(s, w)  z = Neg(t)": "integer",
    "f = Reshape(s, k)  y = MatMul(f, w)": "real",
    "f = Reshape(s, k)  y = MatMul(f, w)  z = Neg(f)": "integer",
    "f = Pad(s, p)  y = MatMul(f, w)": "integer",
}


@pytest.mark.parametrize("body", READERS)
def test_a_real_offset_needs_readers_that_can_fold_it(body):
    text = f"""{HEAD}float[N,6] x, float[6,6] w, int64[2] k, int64[4] p) => (float[N,6] y) {{ s = Neg(x)  {body} }}"""
    graph = ir.from_onnx_text(text).graph
    values = {v.name: v for node in graph for v in node.outputs}
    (product,) = (node for node in graph if node.op_type == "MatMul")
    shape = ir.Shape([6, 6])
    reader = SimpleNamespace(node=product, op="MatMul", weight=SimpleNamespace(shape=shape))
    for configuration in (3, 4):
        assert offset_kind(values["s"], configuration, [reader], alone=False) == READERS[body]
        assert offset_kind(values["s"], configuration, [reader], alone=True) == "real"
        stacked = SimpleNamespace(node=product, op="MatMul", weight=SimpleNamespace(shape=ir.Shape([2, 6, 6])))
        assert offset_kind(values["s"], configuration, [stacked], alone=True) == "integer"
    for configuration in (1, 2):
        assert offset_kind(values["s"], configuration, [reader], alone=False) == "none"


@pytest.mark.parametrize("offset", [0.0, -0.4])
def test_biases_are_settled_on_what_kernels_add(model_from_text, offset):
    text = HEAD + "float[N,6] x, float[6,5] w, float[5] b) => (float[N,5] y) { [layer] y = Gemm(x, w, b) }"
    arrays = {"w": RNG.normal(size=(6, 5)).astype(np.float32), "b": RNG.normal(size=5).astype(np.float32)}
    net = normalise(load(model_from_text(text, **arrays)))
    grid = ActivationQuant(tensor="x", bits=2, scale=0.7, offset=offset)
    weight = WeightQuant(bits=2, scale=tuple(np.linspace(0.3, 0.8, 5)), granularity=qmath.Granularity(axis=1))
    plan = QuantPlan(
        model=net.digest,
        recipe="",
        layers=(LayerQuant(name="layer", op="Gemm", weight=weight),),
        activations=(grid,),
    )
    made, settled = settle_biases(net, plan)
    assert (settled.model, settled.layers) == (made.digest, plan.layers)
    (layer,) = GraphView(made).layers

    step = accumulator_scale(weight, grid).astype(np.float64)
    moved = layer.bias.const_value.numpy() + offset * quantized(layer.weight_array(), weight).sum(0)
    np.testing.assert_allclose(moved / step, np.rint(moved / step), atol=1e-3)
    assert (np.abs(layer.bias.const_value.numpy() - arrays["b"]) <= step / 2 + 1e-6).all()
    assert not np.allclose(layer.bias.const_value.numpy(), arrays["b"])


def test_units_and_factors_of_parameters(started):
    """A rate is relative to a unit; LSQ's factor counts the values that share a scale."""
    view, _, plan = started
    trained = absorb(view.model, plan, LsqPlusConfig())
    slots, weights = trained.slots, {name: view.by_name[name].weight_array() for name in ("first", "second")}
    for name, weight in weights.items():
        assert slots[f"weight:{name}"].unit == pytest.approx(np.sqrt(np.mean(weight.astype(np.float64) ** 2)))
        assert slots[f"weight:{name}"].factor == 1.0
        assert slots[f"weight_scale:{name}"].unit == 1.0
    assert slots["weight_scale:first"].factor == pytest.approx(1 / np.sqrt(6 * 3))
    assert slots["weight_scale:second"].factor == pytest.approx(1 / np.sqrt(15 * 3))
    assert slots["scale:s:tensor"].factor == pytest.approx(1 / np.sqrt(6 * 7))
    assert slots["offset:s:tensor"].unit == 1.0
    assert trained.start[slots["offset:s:tensor"].start] == pytest.approx(-2.0), "zero point 2 as an offset"
    stops = [slot.stop for slot in slots.values()]
    assert [slot.start for slot in slots.values()] == [0, *stops[:-1]]
    assert stops[-1] == trained.size
    assert (rms(np.zeros(3, np.float32)), rms(np.array([3.0, 4.0], np.float32))) == (1.0, pytest.approx(np.sqrt(12.5)))


def test_scales_stay_above_a_thousandth_of_their_start(started):
    view, _, plan = started
    trained = absorb(view.model, plan, LsqPlusConfig())
    values = np.full_like(trained.start, -1.0)
    trained.constrain(values)
    of_scales = trained.of_kind("scale", "weight_scale")
    np.testing.assert_allclose(values[of_scales], 1e-3 * trained.start[of_scales])
    assert (values[~of_scales] == -1.0).all()


def test_an_input_that_is_missing_cannot_be_replaced(started):
    view, _, _ = started
    node = ir.node("MatMul", [None, None])
    layer = SimpleNamespace(node=node, name="layer")
    with pytest.raises(ValueError, match="input 1 of 'layer' is missing"):
        put(view.model.graph, layer, 1, np.zeros(2, np.float32))


def test_no_more_numbers_than_float32_counts():
    """Beyond four million values, numbered constants would not be exact."""
    text = HEAD + "float[N,2048] x, float[2048,2048] w) => (float[N,2048] y) { y = MatMul(x, w) }"
    assert blocked(ir.from_onnx_text(text), ["w"]) is None
    assert blocked(ir.from_onnx_text(text.replace("2048", "16")), ["w"]) is not None


@pytest.mark.parametrize(
    "given",
    [
        {"offsets": "some"},
        {"batch": 0},
        {"shard": 0},
        {"calibration": 0},
        {"scale_rate": 0.0},
        {"temperature": float("inf")},
        {"momentum": 1.0},
        {"label_weight": 1.1},
        {"warmup": -0.1},
        {"weight_decay": -1e-3},
    ],
)
def test_settings_out_of_range(given):
    with pytest.raises(UsageError):
        LsqPlusConfig(**given)
    assert LsqPlusConfig(epochs=1, batch=1, shard=1, calibration=1, label_weight=1.0, warmup=1.0, holdout=0.0)
