"""`threads` is kept by everything that a job runs."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
import threadpoolctl
from click.testing import CliRunner

import qgraph
import qmath
from qgraph.cli import cli
from qgraph.jobs.sensitivity import measure_sensitivity
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.zeroq.distill import DistillConfig, distill
from qgraph.report import report_on
from qgraph.running.sessions import Session, in_parallel
from qgraph.running.threads import for_matrices_of, limited


@pytest.fixture
def seen(monkeypatch):
    """The sizes of all pools and the threads of all sessions that are made, as (what, number)."""
    found = set()
    pool, session = ThreadPoolExecutor.__init__, ort.InferenceSession.__init__

    def make_pool(self, max_workers=None, *args, **kwargs):
        found.add(("pool", max_workers))
        pool(self, max_workers, *args, **kwargs)

    def make_session(self, model, sess_options=None, *args, **kwargs):
        found.add(("session", 0 if sess_options is None else sess_options.intra_op_num_threads))
        session(self, model, sess_options, *args, **kwargs)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "__init__", make_pool)
    monkeypatch.setattr(ort.InferenceSession, "__init__", make_session)
    monkeypatch.setattr("qmath.kernels.threads._threads", 3)
    return found


@pytest.fixture
def few(digits_calibration):
    given = np.load(digits_calibration)
    return {"images": given["images"][:16], "labels": given["labels"][:16]}


SEARCH = SearchConfig(ingredients=("bias",))
JOBS = {
    "distill": lambda net, data: distill(net, count=4, config=DistillConfig(steps=2), threads=1),
    "sensitivity": lambda net, data: measure_sensitivity(net, data, method="minmax", bits=(4,), threads=1),
    "search": lambda net, data: qgraph.search(net, data, config=SEARCH, weights=4, threads=1),
    "finetune": lambda net, data: qgraph.finetune(net, data, config=LsqPlusConfig(epochs=1, batch=8), threads=1),
    "evaluate": lambda net, data: qgraph.evaluate(net, data, against=net, threads=1),
    "compare": lambda net, data: qgraph.compare(net, [net], data, threads=1),
    "report": lambda net, data: report_on(net, [str(net)], data, threads=1),
}


@pytest.mark.parametrize("job", JOBS)
def test_one_thread(digits, few, seen, job):
    JOBS[job](digits, few)
    assert {kind for kind, _ in seen} >= {"session"}
    assert {count for _, count in seen} == {1}
    assert qmath.get_threads() == 3


@pytest.mark.parametrize("options", [[], ["--fused"]], ids=str)
def test_one_thread_on_the_command_line(digits, seen, options):
    assert CliRunner().invoke(cli, ["inspect", str(digits), "--threads", "1", *options]).exit_code == 0
    assert {count for _, count in seen} <= {1}
    assert qmath.get_threads() == 3


def test_the_number_before_comes_back(digits, seen):
    with limited(2), limited(None):
        with limited(1):
            Session(digits)
        list(in_parallel(abs, [1]))
        Session(digits)
        Session(digits, threads=5)
    Session(digits)
    assert seen == {("session", 1), ("pool", 2), ("session", 2), ("session", 5), ("session", 0)}
    with pytest.raises(KeyError), limited(1):
        raise KeyError
    assert qmath.get_threads() == 3


def test_matrix_products_of_numpy_keep_the_number():
    def blas():
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        with limited(1):
            assert blas() <= {1}
        assert blas() <= {3}


@pytest.mark.parametrize(("columns", "threads"), [(1023, 1), (1024, 2)])
def test_products_of_small_matrices_run_on_one_thread(columns, threads):
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with for_matrices_of(columns):
            assert blas_threads() == {threads}
        assert blas_threads() == {2}


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
