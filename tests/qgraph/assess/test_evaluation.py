"""Accuracy and distances, wherever the batches run."""

import math

import numpy as np
import pytest

import qgraph
from qgraph.assess import evaluate as evaluation
from qgraph.assess.evaluate import evaluate
from qgraph.onnxfile.load import load
from qgraph.running.executor import _Threads


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
