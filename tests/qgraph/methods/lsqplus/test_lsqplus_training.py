"""Fine-tuning: what it recovers on the demo network, reproducibility, resuming, starts from other plans, bad input."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.evaluate import evaluate
from qgraph.errors import DataError, ModelError, PlanError, QGraphError, StoreError, UsageError
from qgraph.gradient import GradientError
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.lowering.simulate import simulate
from qgraph.methods.aciq import refine as aciq
from qgraph.methods.lsqplus.batches import augment, open_feed
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.configurations import configuration_of
from qgraph.methods.lsqplus.equalise import equalise
from qgraph.methods.lsqplus.holdout import Judgement, is_kept
from qgraph.methods.lsqplus.initialise import initialise
from qgraph.methods.lsqplus.parameters import absorb
from qgraph.methods.lsqplus.train import Training, train
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import prepare
from qgraph.plan.codes import quantized
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan, Rounding
from qgraph.plan.request import choose_recipe
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset, open_data

QUICK = LsqPlusConfig(epochs=2, batch=16, shard=8, holdout=0.25, rate=5e-3, scale_rate=5e-3)
TRAINED = LsqPlusConfig(epochs=6, rate=5e-3, scale_rate=5e-3)


@pytest.fixture(scope="module")
def net(digits: Path) -> Model:
    return prepare(digits)


@pytest.fixture(scope="module")
def few(net: Model, digits_calibration: Path) -> Dataset:
    return open_data(digits_calibration, net, limit=96)


@pytest.fixture(scope="module")
def start(net: Model, few: Dataset) -> QuantPlan:
    return _plan(net, few, QUICK)


def _plan(net: Model, data: Dataset, config: LsqPlusConfig, bits: int = 3) -> QuantPlan:
    view, observed = GraphView(net), observe(net, data)
    recipe = choose_recipe("lsqplus", True, weights=bits, activations=bits)
    return initialise(initial_plan(view, recipe, observed), view, observed, config=config)


def _same(a: Training, b: Training) -> bool:
    return a.plan == b.plan and a.epochs == b.epochs and a.net.digest == b.net.digest


@pytest.mark.parametrize("bits", [4, 3])
def test_training_recovers_what_post_training_loses(digits, digits_calibration, digits_test, bits: int) -> None:
    """Accuracy, and the divergence from the float model, which tells more: 600 images see few errors at 4 bits."""
    settings = {"weights": bits, "activations": bits, "edge_bits": bits, "per_channel": False}
    before = qgraph.quantize(digits, digits_calibration, method="minmax", **settings)
    after = qgraph.finetune(digits, digits_calibration, config=TRAINED, **settings)
    original = evaluate(load(digits), digits_test).top1
    lost, found = (evaluate(load(m), digits_test, against=digits) for m in (before.model, after.model))
    assert original - lost.top1 >= 0.5
    assert original - found.top1 <= 0.1 * (original - lost.top1)
    assert found.kl <= 0.15 * lost.kl
    simulated = evaluate(load(lower(after.net, after.plan, format="float")), digits_test, against=digits)
    assert found.top1 == simulated.top1
    assert found.kl == pytest.approx(simulated.kl, rel=1e-3)


def test_method_of_quantize_trains(digits, few, net) -> None:
    result = qgraph.quantize(digits, few, method="lsqplus", weights=3)
    assert result.plan.recipe == "lsqplus"
    assert result.plan.model == result.net.digest != net.digest
    assert {layer.weight_bits for layer in result.layers} == {3, 8}
    assert result.to_dict()["data"] == "calibration"
    coarse = [layer for layer in result.layers if layer.weight_bits == 3]
    apart = [layer.predicted_sqnr_db - layer.simulated_sqnr_db for layer in coarse]
    assert len(apart) == 5
    assert np.abs(apart).max() < 1.5
    assert min(layer.measured_sqnr_db for layer in result.layers) > 5.0


def test_bytes_do_not_depend_on_threads_or_interruptions(net, few, start, tmp_path, pieces_in) -> None:
    whole = train(net, start, few, config=QUICK, job=Job(seed=3, threads=2))
    assert _same(whole, train(net, start, few, config=QUICK, job=Job(seed=3, threads=1)))
    with pytest.raises(KeyboardInterrupt):
        train(net, start, few, config=QUICK, job=Job(seed=3, resume=tmp_path, progress=_Stopping(6)))
    assert pieces_in(tmp_path, "training") == 1
    assert _same(whole, train(net, start, few, config=QUICK, job=Job(seed=3, resume=tmp_path)))
    assert not _same(whole, train(net, start, few, config=QUICK, job=Job(seed=4)))


class _Stopping:
    """Interrupts a stage after some units."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def stage(self, title: str, total: int | None = None, *, pieces: int = 1):
        def advance(units: int, note: str = "") -> None:
            self.left -= units
            if self.left <= 0:
                raise KeyboardInterrupt

        yield advance


def test_checkpoint_of_another_training_is_refused(net, few, start, tmp_path) -> None:
    train(net, start, few, config=dataclasses.replace(QUICK, epochs=1), job=Job(resume=tmp_path))
    with pytest.raises(StoreError, match="of its training, the settings is"):
        train(net, start, few, config=QUICK, job=Job(resume=tmp_path))
    trained = train(net, start, few, config=dataclasses.replace(QUICK, epochs=1))
    with pytest.raises(StoreError, match="of its training, the model is"):
        train(trained.net, trained.plan, few, config=dataclasses.replace(QUICK, epochs=1), job=Job(resume=tmp_path))


def test_plan_with_corrections_is_where_training_starts(net, few) -> None:
    """ACIQ's gain goes into weights and scales, its shift into biases: the same function."""
    view, observed = GraphView(net), observe(net, few)
    recipe = choose_recipe("aciq", True, weights=4, activations=4, symmetric=True)
    plan = aciq.refine(initial_plan(view, recipe, observed), view, observed)
    assert any(layer.bias_shift for layer in plan.layers)
    assert any(g != 1.0 for layer in plan.layers for g in layer.weight.gain)
    parameters = absorb(net, plan, dataclasses.replace(QUICK, initialisation="plan"))
    read = {(a.tensor, a.role) for a in parameters.plan.activations}
    kept = dataclasses.replace(plan, activations=tuple(a for a in plan.activations if (a.tensor, a.role) in read))
    feeds = next(few.batches(32)).feeds
    expected = Session(simulate(net, kept), threads=1).run_list(feeds)[0]
    found = Session(simulate(*parameters.release(parameters.start)), threads=1).run_list(feeds)[0]
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_weights_with_zero_points_begin_around_zero(net, few) -> None:
    view = GraphView(net)
    plan = initial_plan(view, choose_recipe("aciq", False, weights=3, activations=None), None)
    assert any(any(layer.weight.zero_point) for layer in plan.layers)
    parameters = absorb(net, plan, QUICK)
    for layer in parameters.release(parameters.start)[1].layers:
        exact = view.by_name[layer.name].weight_array()
        assert not any(layer.weight.zero_point)
        error = np.mean((quantized(exact, layer.weight) - exact) ** 2)
        full = np.abs(exact).max() / (2 ** (layer.weight.bits - 1) - 1)  # one step over the full range
        assert error < np.mean((np.rint(exact / full) * full - exact) ** 2)


def test_rounded_weights_begin_as_their_codes(net, few, start) -> None:
    """Q-Rater's choice of codes is what training starts from."""
    rounding = Rounding(gamma_n=0.4)

    def rounded(layer):
        grid = dataclasses.replace(layer.weight, bits=4, symmetric=True, rounding=rounding, gain=(1.1,))
        return dataclasses.replace(layer, weight=grid)

    plan = start.map_layers(rounded)
    parameters = absorb(net, plan, QUICK)
    found = parameters.feeds(parameters.start)
    for layer in plan.layers:
        exact = quantized(GraphView(net).by_name[layer.name].weight_array(), layer.weight)
        np.testing.assert_allclose(found[f"weight:{layer.name}"], exact, rtol=1e-6)


def test_steps_per_channel_become_weights(net, few) -> None:
    """The same function of floats, and nearly the same of grids: all weights keep their codes."""
    view, observed = GraphView(net), observe(net, few)
    recipe = choose_recipe("aciq", True, weights=4, activations=4)
    config = aciq.AciqConfig(clip="max", channel_activations=True)
    plan = aciq.refine(initial_plan(view, recipe, observed), view, observed, config=config)
    assert any(a.channel_scale for a in plan.activations)
    made, changed = equalise(net, plan)
    assert not any(a.channel_scale for a in changed.activations)
    feeds = next(few.batches(32)).feeds
    plain = [Session(m.ir_model, threads=1).run_list(feeds)[0] for m in (net, made)]
    np.testing.assert_allclose(plain[1], plain[0], atol=1e-4 * np.abs(plain[0]).max())
    lowered = [Session(simulate(*pair), threads=1).run_list(feeds)[0] for pair in ((net, plan), (made, changed))]
    np.testing.assert_allclose(lowered[1], lowered[0], atol=2e-2 * np.abs(lowered[0]).max())


def test_start_from_a_plan(digits, few, net) -> None:
    plan = qgraph.quantize(digits, few, method="aciq", weights=2, activations=2).plan
    config = dataclasses.replace(QUICK, initialisation="plan")
    result = qgraph.finetune(digits, few, config=config, start=plan)
    assert result.epochs[result.best_epoch].distance < result.epochs[0].distance
    assert [a.tensor for a in result.plan.activations] == [a.tensor for a in plan.activations]


def test_without_labels_the_float_outputs_teach(net, few, start) -> None:
    unlabelled = dataclasses.replace(few, labels=None)
    trained = train(net, start, unlabelled, config=QUICK)
    assert trained.epochs[0].top1 is None
    assert trained.epochs[trained.best_epoch].distance < 0.5 * trained.epochs[0].distance


TWO_OUTPUTS = """<ir_version: 8, opset_import: ["": 17]>
m (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] boxes, float[N, 2, 4, 4] scores)
<float[6, 3, 3, 3] w, float[4, 6, 3, 3] v, float[6, 6, 3, 3] u, float[2, 6, 1, 1] t> {
    [first] a = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(a) [boxes] boxes = Conv<pads = [1, 1, 1, 1]>(r, v)
    [second] c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(r, u) s = Sigmoid(c) b = Mul(c, s)
    [scores] scores = Conv(b, t)
}"""


def test_outputs_that_are_no_classes_follow_the_float_model(model_from_text) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 3, 3, 3), "v": (4, 6, 3, 3), "u": (6, 6, 3, 3), "t": (2, 6, 1, 1)}
    weights = {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    model, data = model_from_text(TWO_OUTPUTS, **weights), rng.normal(size=(64, 3, 8, 8)).astype(np.float32)
    result = qgraph.finetune(model, data, config=QUICK, weights=3, activations=3)
    assert result.epochs[result.best_epoch].distance < result.epochs[0].distance
    labelled = {"x": data, "labels": np.zeros(64, np.int64)}
    with pytest.raises(DataError, match="no output with one score per class"):
        qgraph.finetune(model, labelled, config=QUICK)


def test_a_plan_of_other_layers_is_refused(digits, few, start) -> None:
    other = start.map_layers(lambda layer: dataclasses.replace(layer, name=f"other/{layer.name}"))
    with pytest.raises(PlanError, match="which is no quantizable layer"):
        qgraph.finetune(digits, few, start=other, config=QUICK)


def test_layers_without_a_grid_to_train_are_refused(model_from_text) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> m (int64[N] i, float[N, 8] x) => (float[N, 3] y)
        <float[400, 8] t, float[8, 3] w> { [rows] r = Gather(t, i) s = Add(r, x) [product] y = MatMul(s, w) }"""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {"t": (400, 8), "w": (8, 3)}.items()}
    model = model_from_text(text, **weights)
    data = {"i": rng.integers(0, 400, 64), "x": rng.normal(size=(64, 8)).astype(np.float32)}
    plan = qgraph.quantize(model, data, activations="dynamic").plan
    assert {layer.name: layer.runs for layer in plan.layers} == {"rows": "floats", "product": "dynamic"}
    only = dataclasses.replace(plan, layers=tuple(layer for layer in plan.layers if layer.name == "product"))
    with pytest.raises(PlanError, match="'product' is dynamic and has no grid of its operand to train"):
        qgraph.finetune(model, data, start=only, config=QUICK)
    static = qgraph.quantize(model, data, activations=8).plan
    with pytest.raises(PlanError, match="'rows' is a table, whose rows are not trained"):
        qgraph.finetune(model, data, start=static, config=QUICK)


def test_no_gradient_is_said_before_the_first_step(model_from_text) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> m (float[N, 4] x) => (float[N, 3] y)
        <float[4, 5] w, float[5, 3] v> { [layer] a = Gemm(x, w) h = Hardmax(a) [last] y = Gemm(h, v) }"""
    rng = np.random.default_rng(0)
    model = model_from_text(text, w=rng.normal(size=(4, 5)).astype(np.float32), v=np.ones((5, 3), np.float32))
    with pytest.raises(GradientError, match="Hardmax"):
        qgraph.finetune(model, rng.normal(size=(64, 4)).astype(np.float32), config=QUICK)
    with pytest.raises(GradientError, match="Hardmax"):
        qgraph.finetune(model, config=QUICK, progress=_Stopping(0))  # before anything is distilled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(96, 10)}, "label 10 is no class"),
        ({"labels": np.full(96, -1)}, "label -1 is no class"),
        ({"limit": 15}, "too few for a batch of 16"),
    ],
)
def test_bad_data(net, few, start, change, message) -> None:
    with pytest.raises(DataError, match=message):
        train(net, start, dataclasses.replace(few, **change), config=QUICK)


def test_divergence_is_said(net, few, start) -> None:
    with np.errstate(all="ignore"), pytest.raises(ModelError, match=r"diverged in epoch .* lower config.rate"):
        train(net, start, few, config=dataclasses.replace(QUICK, rate=3e38, optimiser="sgd"))


def test_training_that_does_not_help_keeps_its_start(net, few, start) -> None:
    careful = dataclasses.replace(QUICK, epochs=1, rate=1e-9, scale_rate=5.0)
    with pytest.warns(UserWarning, match="did not improve on the start"):
        trained = train(net, start, few, config=careful)
    assert trained.best_epoch == 0


@pytest.mark.parametrize(
    ("distances", "kept"),
    [
        ([0.9, 0.5], True),
        ([0.9, 0.5, 0.55], True),  # not worse than the best by more than its error
        ([0.9, 0.5, 0.55, 0.62], False),
        ([0.9, 0.5, 0.62, 0.58], True),
        ([0.4, 0.45], False),  # but worse than the start
        ([0.9, np.nan], False),
        ([0.9, np.nan, 0.5], True),
        ([None, None], True),
    ],
)
def test_which_epoch_is_kept(distances, kept) -> None:
    assert is_kept([Judgement(loss=None, distance=d, top1=None, error=0.1) for d in distances]) == kept


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"rate": -1.0},
        {"holdout": 1.0},
        {"optimiser": "lion"},
        {"initialisation": "x"},
        {"configuration": 5},
    ],
)
def test_bad_settings(wrong) -> None:
    with pytest.raises(UsageError):
        LsqPlusConfig(**wrong)


def test_errors_are_of_the_family() -> None:
    assert issubclass(GradientError, QGraphError)


@pytest.mark.parametrize(
    ("operators", "automatic", "forced"),
    [
        ("y = Relu(c)", 1, {1: 1, 2: 2, 3: 3, 4: 4}),
        ("y = Sigmoid(c)", 1, {1: 1, 2: 2, 3: 3, 4: 4}),
        ("s = Sigmoid(c) y = Mul(c, s)", 4, {1: 1, 2: 2, 3: 3, 4: 4}),
        ("y = Identity(c)", 4, {1: 2, 2: 2, 3: 3, 4: 4}),
    ],
)
def test_configurations(operators: str, automatic: int, forced: dict[int, int]) -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> m (float[1,2,4,4] x, float[2,2,1,1] w) => (float[1,2,4,4] y) '
        f"{{ c = Conv(x, w) {operators} }}"
    )
    y = model.graph.outputs[0]
    assert configuration_of(y, 4, None) == automatic
    assert {number: configuration_of(y, 4, number) for number in forced} == forced
    assert configuration_of(y, 8, 3) == automatic


def test_feed_covers_every_sample_once_in_an_epoch(few) -> None:
    feed = open_feed(few, dataclasses.replace(QUICK, augment=False), seed=5)
    assert not set(feed.training) & set(feed.held_out)
    assert len(feed.training) + len(feed.held_out) == few.count
    drawn = np.concatenate([feed.batch(0, step).feeds["input"] for step in range(feed.steps)])
    assert len(np.unique(drawn.reshape(len(drawn), -1), axis=0)) >= 0.95 * len(drawn)
    again = open_feed(few, dataclasses.replace(QUICK, augment=False), seed=5).batch(1, 2)
    np.testing.assert_array_equal(feed.batch(1, 2).feeds["input"], again.feeds["input"])
    assert not np.array_equal(feed.batch(0, 0).labels, feed.batch(1, 0).labels)


def test_augmentation_mirrors_and_shifts() -> None:
    images = np.arange(40 * 2 * 16 * 8, dtype=np.float32).reshape(40, 2, 16, 8)
    changed = augment(images, np.random.default_rng(0))
    assert changed.shape == images.shape
    seen = set()
    for before, after in zip(images, changed, strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (1, 1)), mode="edge")
        options = {
            (mirror, i, j): padded[:, i : i + 16, j : j + 8][:, :, :: -1 if mirror else 1]
            for mirror in (False, True)
            for i in range(5)
            for j in range(3)
        }
        matching = [key for key, option in options.items() if np.array_equal(option, after)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) > 10
