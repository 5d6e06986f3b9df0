"""What a search measures: one number per sample, larger being better, and never NaN."""

from __future__ import annotations

import numpy as np
import pytest

from qgraph.errors import DataError
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.qrater.config import LABELLED, OBJECTIVES, SearchConfig
from qgraph.methods.qrater.objective import INVALID, choose_scorer
from qgraph.methods.qrater.protocol import paper_plan
from qgraph.methods.qrater.search import search as run_search
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.executor import open_executor
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

REFERENCE = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], np.float32)
LABELS = np.array([0, 2])
NET = """
<ir_version: 10, opset_import: ["": 17]>
net (float[N, 4] x, float[4, 3] w) => (float[N, 3] y) { s = MatMul (x, w) y = Log (s) }
"""


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def expected(objective, scores):
    if objective == "accuracy":
        return scores.argmax(axis=1) == LABELS
    likelihood = log_softmax(scores)[[0, 1], LABELS]
    if objective == "loss":
        return likelihood
    if objective == "task":
        return (scores.argmax(axis=1) == LABELS) + likelihood / 1000
    if objective == "kl":
        p, q = log_softmax(REFERENCE.astype(np.float64)), log_softmax(scores)
        return -(np.exp(p) * (p - q)).sum(axis=1)
    return -((scores - REFERENCE) ** 2).mean(axis=1) / (REFERENCE.astype(np.float64) ** 2).mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_are_what_they_say(objective):
    scorer = choose_scorer(objective, [[REFERENCE]], LABELS)
    scores = np.array([[0.5, 1.0, -1.0], [0.0, 1.0, 3.0]], np.float32)
    np.testing.assert_allclose(
        scorer([scores], [REFERENCE], LABELS), expected(objective, scores.astype(np.float64)), rtol=1e-6
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_without_a_finite_answer_is_the_worst_of_all(objective, bad):
    scorer = choose_scorer(objective, [[REFERENCE]], LABELS)
    scores = REFERENCE.copy()
    scores[1, 1] = bad
    first, second = scorer([scores], [REFERENCE], LABELS)
    assert second == INVALID < first


def test_the_loss_decides_only_between_equally_many_correct_answers():
    scorer = choose_scorer("task", [[REFERENCE]], LABELS)
    sure, unsure = (np.array([[s, 0.0, -1.0], [0.0, 1.0, 0.5]], np.float32) for s in (9.0, 0.1))
    wrong = np.array([[-30.0, 9.0, -1.0], [0.0, 1.0, 1.1]], np.float32)  # the other one is correct, and a nat is lost
    best, middle, other = (scorer([s], [REFERENCE], LABELS).sum() for s in (sure, unsure, wrong))
    assert best > middle
    assert round(best) == round(middle) == round(other) == 1


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (LABELS, LABELLED),
        (None, "mse"),
        (LABELS + 7, "mse"),  # no classes of this output
        (LABELS * 0.5, "mse"),
        (np.zeros((2, 4), int), "mse"),  # boxes
    ],
)
def test_the_task_is_measured_where_labels_are_classes(labels, found):
    assert choose_scorer(None, [[REFERENCE]], labels).objective == found


def test_an_output_of_one_number_has_no_classes():
    with pytest.raises(DataError, match=r"one score per class; choose mse"):
        choose_scorer("kl", [[REFERENCE[:, 0]]], None)


def test_outputs_of_zero_leave_nothing_to_measure():
    with pytest.raises(DataError, match="no objective to measure"):
        choose_scorer("mse", [[np.zeros_like(REFERENCE)]], None)


def test_a_candidate_that_computes_infinities_is_not_chosen(model_from_text):
    """Its third channel is small: where the widest weight sets the step, it becomes zero, and its logarithm -inf."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(1.0, 1.3, size=(4, 3)).astype(np.float32)
    weight[:, 2] *= 0.1
    net = normalise(load(model_from_text(NET, w=weight)))
    x = np.abs(rng.normal(size=(64, 4))).astype(np.float32) + 0.1
    base = paper_plan(GraphView(net), None, weights=2, activations=None, clip="max", first_layer_bits=2)
    with open_executor(workers=1) as executor:
        found = run_search(base, net, open_data(x, net), executor=executor, config=SearchConfig(ingredients=("clip",)))
    with np.errstate(divide="ignore"):
        assert np.isinf(Session(simulate(net, base)).run({"x": x})["y"]).any()
    assert np.isfinite(Session(simulate(net, found.plan)).run({"x": x})["y"]).all()
    assert found.history[-1][1] > INVALID


def test_only_outputs_with_a_row_for_each_sample_count():
    """A number, a table of anchors and words say nothing of single samples."""
    words, number, anchors = np.array([["a"], ["b"]]), np.float32(3.0), np.ones((5, 2), np.float32)
    outputs = [np.asarray(number), anchors, words, REFERENCE]
    scorer = choose_scorer("mse", [outputs, outputs], None, counts=[2, 2])
    assert [power > 0 for power in scorer.power] == [False, False, False, True]
    assert scorer.power[3] == pytest.approx(np.square(REFERENCE.astype(np.float64)).mean())
    moved = [np.asarray(number + 1), anchors + 1, words, REFERENCE + 1]
    np.testing.assert_allclose(scorer(moved, outputs, None), -1 / scorer.power[3])
    assert choose_scorer("kl", [outputs], None, counts=[2]).scores == 3
