"""Every error that qgraph raises on purpose.

A message names what was expected, what was found, where (node, tensor, file) and the way out; the command line prints
it and exits with `exit_status` instead of showing a traceback.
"""

from __future__ import annotations

import difflib


class QGraphError(Exception):
    """The job failed for a reason that the message explains."""

    exit_status = 1


class UsageError(QGraphError):
    """The request itself is wrong: unknown names, impossible combinations, values out of range."""

    exit_status = 2


class ModelError(QGraphError):
    """The model cannot be read, is not valid ONNX, or has nothing to quantize."""


class DataError(QGraphError):
    """Calibration or evaluation data are missing, malformed, or do not fit the model."""


class PlanError(QGraphError):
    """A plan is malformed or was made for another model."""


class StoreError(QGraphError):
    """The checkpoints of a job cannot be read or written, belong to another job, or are in use by another process."""


class ExecutorError(QGraphError):
    """The machines that were to do the work cannot be reached, or were lost."""


class QualityWarning(UserWarning):
    """A file misses what was wanted of it; the message has the figures."""


def first_line(error: Exception) -> str:
    """What an error of another library says, without its details."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def hint(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: which known ones it may have meant."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""
