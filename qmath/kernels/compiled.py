"""Compiles kernels with Numba and caches them wherever that is possible."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core import event

log = logging.getLogger("qmath.kernels")
F = TypeVar("F", bound=Callable[..., Any])

_LEAN = {"error_model": "numpy", "no_cfunc_wrapper": True}
"""No code that raises ZeroDivisionError, and none for callers in C: a tenth less to compile."""


def compiled(*, nogil: bool = True, fastmath: bool | set[str] = False) -> Callable[[F], F]:
    """Numba's `njit`, by default without the interpreter lock, and cached on disk.

    A division by zero gives inf or NaN, as in NumPy. What takes long to compile is what Numba has in Python itself
    (`np.sort`, `reshape`, masks, array expressions, tuples of arrays): kernels are loops over what NumPy prepared.

    Numba caches kernels in `NUMBA_CACHE_DIR`, beside their source or in the user's cache folder, and refuses to compile
    if it can write to none of them. They are then kept in a temporary folder until the process ends, with a warning.
    """

    def compile_kernel(function: F) -> F:
        options: dict[str, Any] = {"cache": True, "nogil": nogil, "fastmath": fastmath, **_LEAN}
        try:
            kernel: F = numba.njit(**options)(function)
        except RuntimeError:  # no place for the cache
            _keep_for_this_process()
            kernel = numba.njit(**options)(function)
        return kernel

    return compile_kernel


class _Announcement(event.Listener):
    """Logs once that kernels are compiled, which takes seconds where they are not cached."""

    said = False

    def on_start(self, event: Any) -> None:
        if not _Announcement.said:
            _Announcement.said = True
            log.info("compiling kernels, first run only (`qgraph warmup` does it ahead)")

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announcement())


def _keep_for_this_process() -> None:
    """Let Numba cache in a new temporary folder."""
    folder = tempfile.mkdtemp(prefix="qmath-")  # of this user alone: what is cached is code that will be run
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]
    warnings.warn(
        "compiled kernels cannot be kept, neither beside the package nor in the user's cache folder: every process "
        "compiles them anew; set NUMBA_CACHE_DIR to a folder that may be written",
        stacklevel=3,
    )
