"""One number of threads for everything that a job runs: kernels, sessions, pools and NumPy's matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import qmath

P = ParamSpec("P")
R = TypeVar("R")

_WORTH_THREADS = 1024  # columns
_limit: int | None = None


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Let everything inside use `threads` threads unless it asks for another number; None changes nothing.

    The number holds for the whole process; the previous one is restored at the end.
    """
    global _limit
    if threads is None:
        yield
        return
    from threadpoolctl import threadpool_limits  # the command line starts without it

    before = _limit, qmath.get_threads()
    _limit = threads
    qmath.set_threads(threads)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        _limit = before[0]
        qmath.set_threads(before[1])


@contextmanager
def for_matrices_of(columns: int) -> Iterator[None]:
    """Let NumPy's products of matrices with so few columns run on one thread.

    More threads gain nothing there, and wait for work by computing: on busy cores that takes twice the time.
    """
    if columns >= _WORTH_THREADS:
        yield
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def limit() -> int | None:
    """The number of threads that a job was given; None if it may use all cores."""
    return _limit


def keeps_threads(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with its argument `threads` applied to everything that it calls."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        threads = kwargs.get("threads")
        with limited(threads if isinstance(threads, int) else None):
            return function(*args, **kwargs)

    return run
