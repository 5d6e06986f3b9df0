"""Accuracy and distances, wherever the batches run."""

import math

import numpy as np
import pytest

import qgraph
from qgraph.assess import evaluate as evaluation
from qgraph.assess.evaluate import evaluate
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.qrater.objective import choose_scorer
from qgraph.observe.distance import Reference
from qgraph.onnxfile.load import load
from qgraph.running.executor import _Threads
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data


@pytest.fixture(scope="module")
def small(digits, digits_calibration):
    return qgraph.quantize(digits, digits_calibration).model


def test_the_sums_do_not_depend_on_the_order_of_results(small, digits, digits_test, monkeypatch):
    expected = evaluate(small, digits_test, against=digits, limit=300)

    def backwards(self, job, shared, tasks, *, ahead=None):
        return reversed([(index, job(shared, task)) for index, task in enumerate(tasks)])

    monkeypatch.setattr(_Threads, "run", backwards)
    assert evaluate(small, digits_test, against=digits, limit=300) == expected
    assert expected.count == 300
    assert expected.top1 > 90
    assert expected.kl < 0.1


def test_dynamic_grids_span_one_sample(model_from_text):
    """In a batch, the loudest sample would set the grid of all."""
    rng = np.random.default_rng(4)
    text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,64] x, float[64,32] w) => (float[N,32] y) { y = MatMul(x, w) }"""
    model = model_from_text(text, w=rng.normal(size=(64, 32)).astype(np.float32))
    x = (rng.normal(size=(16, 64)) * np.geomspace(1, 100, 16)[:, None]).astype(np.float32)
    made = qgraph.quantize(model, activations="dynamic", measure=False).model
    sessions = Session(load(model).ir_model), Session(made)
    want, have = (np.concatenate([session.run_list({"x": row[None]})[0] for row in x]) for session in sessions)
    alone = 10 * np.log10(np.square(want).sum() / np.square(want - have).sum())
    assert evaluate(made, x, against=model).sqnr_db == pytest.approx(alone, abs=1e-3)


def test_few_batches_are_in_memory(small, digits_test, monkeypatch):
    monkeypatch.setattr(evaluation, "AHEAD", 2)
    waiting = []
    run = _Threads.run

    def watched(self, job, shared, tasks, *, ahead=None):
        def counted():
            for task in tasks:
                waiting.append(task)
                yield task

        for result in run(self, job, shared, counted(), ahead=ahead):
            assert len(waiting) <= 2
            waiting.pop()
            yield result

    monkeypatch.setattr(_Threads, "run", watched)
    assert evaluate(small, digits_test, limit=200).count == 200


def test_a_cluster_evaluates_the_same(small, digits, digits_test, cluster):
    here, there = (
        evaluate(small, digits_test, against=digits, limit=200, executor=where) for where in ("local", cluster)
    )
    assert here == there
    assert math.isfinite(here.kl)


def test_what_fills_a_fixed_batch_does_not_count(model_from_text):
    """Six samples in batches of four: the padding repeats the last sample, which is the only wrong one."""
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[SIZE,3] x, float[3,3] w) => (float[SIZE,3] y) { y = MatMul(x, w) }"""
    exact, moved = np.eye(3, dtype=np.float32), np.diag(np.float32([1.0, 1.0, 0.5]))
    x = np.float32([[4, 0, 0], [0, 4, 0], [4, 0, 0], [0, 4, 0], [4, 0, 0], [0, 0, 4]])
    data = {"x": x, "labels": np.array([0, 1, 0, 1, 0, 1])}
    found = []
    for size in ("N", "4"):
        net, twin = (load(model_from_text(text.replace("SIZE", size), w=w)) for w in (moved, exact))
        found.append(evaluate(net, data, against=twin))
    free, fixed = found
    assert fixed.count == free.count == 6
    assert fixed.top1 == free.top1 == pytest.approx(500 / 6)
    assert fixed.kl == pytest.approx(free.kl)
    assert fixed.sqnr_db == pytest.approx(10 * np.log10(96 / 4))


RNG = np.random.default_rng(5)
PROBABILITIES = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,6] x, float[6,8] w, float s, uint8 z) => (float[N,8] y) {
  l = MatMul(x, w)
  p = Softmax <axis = 1> (l)
  CODES
}"""


@pytest.fixture
def twins(model_from_text):
    """A network that ends in a Softmax, and what another tool makes of it: the sums are far from 1."""
    constants = {"w": RNG.normal(size=(6, 8)).astype(np.float32), "s": np.float32(1 / 30), "z": np.uint8(0)}
    coded = "q = QuantizeLinear(p, s, z) y = DequantizeLinear(q, s, z)"
    bodies = ("y = Identity(p)", coded)
    return [load(model_from_text(PROBABILITIES.replace("CODES", body), **constants)) for body in bodies]


def test_quantized_probabilities_are_probabilities(twins):
    """Decided once, from the float model, by all that measure a divergence."""
    x = RNG.normal(size=(40, 6)).astype(np.float32)
    p, q = (Session(net.ir_model).run_list({"x": x})[0].astype(np.float64) for net in twins)
    assert np.abs(q.sum(axis=1) - 1).max() > 0.03
    q = np.maximum(q, 1e-12)
    expected = float((p * np.log(p / (q / q.sum(axis=1, keepdims=True)))).sum(axis=1).mean())
    assert evaluate(twins[1], x, against=twins[0]).kl == pytest.approx(expected, rel=1e-3)
    reference = Reference.of(twins[0], open_data(x, twins[0]), samples=40)
    assert reference.distance(Session(twins[1].ir_model)) == pytest.approx(expected, rel=1e-3)
    scorer = choose_scorer("kl", [[p.astype(np.float32)]], None)
    assert -scorer([q], [p], None).mean() == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*did not improve")
def test_training_follows_probabilities(model_from_text):
    """It sees the same, whether the Softmax comes last or not."""
    x, w = RNG.normal(size=(32, 6)).astype(np.float32), RNG.normal(size=(6, 8)).astype(np.float32)
    histories = []
    for end in ("y = Softmax <axis = 1> (l)", "p = Softmax <axis = 1> (l) y = Reshape(p, i)"):
        text = """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,6] x, float[6,8] w, int64[2] i) => (float[N,8] y) { l = MatMul(x, w) END }""".replace("END", end)
        net = model_from_text(text, w=w, i=np.array([-1, 8]))
        trained = qgraph.finetune(net, x, config=LsqPlusConfig(epochs=1, batch=8), edge_bits=4, measure=False)
        histories.append([number for epoch in trained.epochs for number in (epoch.loss or 0, epoch.distance)])
    assert histories[0] == pytest.approx(histories[1], rel=1e-3)
    assert histories[0][1] > 1e-4
