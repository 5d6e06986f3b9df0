"""Splits the range of a kernel over threads.

Kernels release the interpreter lock, and their results do not depend on the split.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_pool: ThreadPoolExecutor | None = None
_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Set the number of threads that kernels may use; at first, as many as this process may run on.

    Raises:
        ValueError: For anything but an integer >= 1.

    Example:
        >>> import qmath
        >>> before = qmath.get_threads()
        >>> qmath.set_threads(1)
        >>> qmath.get_threads()
        1
        >>> qmath.set_threads(before)
    """
    global _threads
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count: expected a whole number of threads >= 1, found {count!r}")
    _threads = count
    _forget_pool()


def get_threads() -> int:
    """Return the number of threads that kernels may use.

    Example:
        >>> import qmath
        >>> qmath.get_threads() >= 1
        True
    """
    return _threads


def over_threads(kernel: Callable[..., T], size: int, grain: int, *arguments: Any) -> list[T]:
    """Results of `kernel(start, stop, *arguments)` for consecutive ranges that cover 0..size.

    A range has at least `grain` items; a single range runs in the calling thread.
    """
    parts = min(_threads, size // grain)
    if parts <= 1:
        return [kernel(0, size, *arguments)]
    bounds = [size * part // parts for part in range(parts + 1)]
    pool = _shared_pool()
    later = [pool.submit(kernel, *bounds[part : part + 2], *arguments) for part in range(1, parts)]
    return [kernel(*bounds[:2], *arguments), *(future.result() for future in later)]


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(_threads, thread_name_prefix="qmath")
    return _pool


def _forget_pool() -> None:
    """Drop the pool: its threads do not survive a fork, and a new count needs a new pool."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
