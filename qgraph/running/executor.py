"""Where many independent jobs run: in threads of this process, or on the workers of a Dask cluster.

    with open_executor("local") as executor:
        for index, result in executor.run(job, shared, tasks):
            ...

`job(shared, task)` is a module-level function; `shared` is what all tasks need (a serialized model, samples) and is
sent once to each worker. Results arrive in the order of completion, each with the index of its task, and do not depend
on the executor or the number of workers. Only this module imports dask.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Protocol, TypeVar

import qmath
from qgraph.errors import ExecutorError, UsageError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

LOCAL, DASK = "local", "dask"
_CONNECT_SECONDS = 10


class SentWithoutCaches:
    """A dataclass that is sent to workers as its fields alone; what it has cached is made again there."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


class Executor(Protocol):
    """Runs jobs; made by `open_executor`."""

    def run(
        self, job: Callable[[S, T], R], shared: S, tasks: Iterable[T], *, ahead: int | None = None
    ) -> Iterator[tuple[int, R]]:
        """Yield (index, job(shared, task)) for every task in the order of completion; a job's exception is raised.

        At most `ahead` tasks are taken from `tasks` before one of them is completed (and with threads at most two per
        thread); None: all at once.
        """


@contextmanager
def open_executor(where: str = LOCAL, *, workers: int | None = None) -> Iterator[Executor]:
    """Open the executor that `where` names.

    Args:
        where: `local`: threads (onnxruntime releases the GIL); `dask:ADDRESS`: the cluster whose scheduler listens
            there (`dask:tcp://host:8786`); `dask`: a cluster of processes on this machine. Tasks of a lost worker are
            redone.
        workers: number of threads or processes, by default one per core; a cluster at an address has its own.

    Raises:
        UsageError: When `where` is not an executor, or dask is not installed.
        ExecutorError: When the cluster cannot be reached, has no workers, or is lost while running.
    """
    name, _, address = where.partition(":")
    if where == LOCAL:
        yield _Threads(workers=workers or qmath.get_threads())
    elif name == DASK and (address or where == DASK):
        with _dask_client(address, workers or qmath.get_threads()) as client:
            yield _Dask(client=client)
    else:
        raise UsageError(f"unknown executor '{where}': choose local, dask, or dask:ADDRESS (dask:tcp://host:8786)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Threads:
    workers: int

    def run(
        self, job: Callable[[S, T], R], shared: S, tasks: Iterable[T], *, ahead: int | None = None
    ) -> Iterator[tuple[int, R]]:
        numbered = enumerate(tasks)
        with ThreadPoolExecutor(self.workers) as pool:
            futures: dict[Future[R], int] = {}

            def submit(count: int | None) -> None:
                futures.update((pool.submit(job, shared, task), index) for index, task in islice(numbered, count))

            try:
                submit(None if ahead is None else min(ahead, 2 * self.workers))
                while futures:
                    for future in wait(futures, return_when=FIRST_COMPLETED).done:
                        yield futures.pop(future), future.result()
                        submit(1)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dask:
    client: Any

    def run(
        self, job: Callable[[S, T], R], shared: S, tasks: Iterable[T], *, ahead: int | None = None
    ) -> Iterator[tuple[int, R]]:
        from distributed import KilledWorker, as_completed

        numbered, under_way = enumerate(tasks), as_completed(loop=self.client.loop)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)  # large, but sent only once
            # a task rather than scattered data: it is redone when the worker that held it is lost
            everywhere = self.client.submit(_Unpickled, pickle.dumps(shared), pure=False)
        futures = {}

        def submit(count: int | None) -> None:
            for index, task in islice(numbered, count):
                future = self.client.submit(_run, job, everywhere, task, pure=False)
                futures[future] = index
                under_way.add(future)

        try:
            submit(ahead)
            for future in under_way:
                yield futures.pop(future), future.result()
                submit(1)
        except KilledWorker as error:
            raise ExecutorError(f"the Dask cluster lost its worker repeatedly on the same task: {error}") from None
        except ModuleNotFoundError as error:
            raise ExecutorError(
                f"a Dask worker lacks a module: {error}; install qgraph-onnx on every worker"
            ) from error
        finally:
            self.client.cancel([*futures, everywhere], force=True)


class _Unpickled:
    """`shared` on a worker: unpickled on first use, and passed between workers as the bytes it arrived in."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._value: Any = None
        self._lock = threading.Lock()

    @property
    def value(self) -> Any:
        with self._lock:
            if self._value is None:
                self._value = pickle.loads(self.data)
            return self._value

    def __reduce__(self) -> tuple[type[_Unpickled], tuple[bytes]]:
        return _Unpickled, (self.data,)


def _run(job: Callable[[Any, T], R], shared: _Unpickled, task: T) -> R:
    return job(shared.value, task)


@contextmanager
def _dask_client(address: str, workers: int) -> Iterator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise UsageError('the Dask executor needs the extra dask: pip install "qgraph-onnx[dask]"') from None
    if not address:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"no Dask scheduler answers at {address} within {_CONNECT_SECONDS} s: start one with "
            f"dask scheduler ({error})"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError:
            raise ExecutorError(
                f"the Dask cluster at {address} has no workers: start some with dask worker {address}"
            ) from None
        yield client
