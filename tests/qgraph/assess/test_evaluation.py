"""Accuracy and distances, wherever the batches run."""

import math

import pytest

import qgraph
from qgraph.assess import evaluate as evaluation
from qgraph.assess.evaluate import evaluate
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
