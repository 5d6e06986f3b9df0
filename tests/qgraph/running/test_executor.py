"""Executors: every task once, whoever runs it, and whatever is lost on the way."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from qgraph.errors import ExecutorError, UsageError
from qgraph.running.executor import open_executor


def scaled(shared: dict[str, float], task: int) -> float:
    return shared["factor"] * task


def failing(shared: None, task: int) -> int:
    if task == 3:
        raise ValueError("task 3")
    return task


def deadly_once(shared: str, task: int) -> int:
    """Kills its worker process the first time that task 2 runs."""
    mark = Path(shared) / "died"
    if task == 2 and not mark.exists():
        mark.touch()
        os._exit(1)
    return task * task


def thread_name(shared: None, task: int) -> str:
    return threading.current_thread().name


def test_threads_run_every_task_once():
    with open_executor("local", workers=3) as executor:
        results = dict(executor.run(scaled, {"factor": 0.5}, range(20)))
        assert taken(range(9), executor, 3) == [3, 4, 5, 6, 7, 8, 9, 9, 9]
    assert results == {i: 0.5 * i for i in range(20)}


def test_threads_leave_the_caller_alone():
    with open_executor("local", workers=2) as executor:
        names = {name for _, name in executor.run(thread_name, None, range(8))}
    assert threading.current_thread().name not in names
    assert len(names) <= 2


def test_an_exception_of_a_job_is_raised():
    with open_executor("local", workers=2) as executor, pytest.raises(ValueError, match="task 3"):
        list(executor.run(failing, None, range(100)))


def test_no_tasks_no_results():
    with open_executor() as executor:
        assert list(executor.run(scaled, {"factor": 1.0}, [])) == []


def taken(tasks, executor, ahead):
    """How many tasks were taken when each result came."""
    seen = []

    def counted():
        for task in tasks:
            seen.append(task)
            yield task

    return [len(seen) for _ in executor.run(scaled, {"factor": 1.0}, counted(), ahead=ahead)]


def test_tasks_are_taken_no_further_ahead_than_asked():
    with open_executor(workers=2) as executor:
        assert taken(range(9), executor, 3) == [3, 4, 5, 6, 7, 8, 9, 9, 9]
        assert taken(range(9), executor, 64) == [4, 5, 6, 7, 8, 9, 9, 9, 9]  # two for each thread
        assert taken(range(9), executor, None) == [9] * 9


@pytest.mark.parametrize("where", ["", "cluster", "local:4", "dask:", "daskx:tcp://a:1"])
def test_an_unknown_executor_is_refused(where):
    with pytest.raises(UsageError, match="choose local"), open_executor(where):
        pass


def test_a_cluster_runs_the_same(cluster):
    with open_executor(cluster) as executor:
        results = dict(executor.run(scaled, {"factor": 0.5}, range(20)))
        with pytest.raises(ValueError, match="task 3"):
            list(executor.run(failing, None, range(6)))
        assert taken(range(9), executor, 3) == [3, 4, 5, 6, 7, 8, 9, 9, 9]
    assert results == {i: 0.5 * i for i in range(20)}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_tasks_of_a_lost_worker_are_redone(cluster, tmp_path, caplog):
    with open_executor(cluster) as executor:
        results = dict(executor.run(deadly_once, str(tmp_path), range(6)))
    assert (tmp_path / "died").exists()
    assert results == {i: i * i for i in range(6)}


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("distributed", reason='needs the extra: pip install ".[dask]"')
    monkeypatch.setattr("qgraph.running.executor._CONNECT_SECONDS", 0.2)
    with pytest.raises(ExecutorError, match="no Dask scheduler"), open_executor("dask:tcp://127.0.0.1:9"):
        pass
