"""The errors that end a job; each message says what was expected, what was found and how to go on.

Every error derives from `QGraphError`, whose `exit_status` is that of the command line, and from the built-in error
that Python programs expect in its place: ValueError for requests, data, models and plans that are wrong,
FileNotFoundError where there is no such file, TypeError for objects of another kind, ImportError where a package is
missing.
"""

from __future__ import annotations

import difflib


class QGraphError(Exception):
    """Base of all errors of the package: a job failed, for the reason that the message gives.

    Example:
        >>> import qgraph
        >>> try:
        ...     qgraph.quantize("missing.onnx")
        ... except qgraph.QGraphError as error:
        ...     print(error, error.exit_status)
        no such model file: missing.onnx 1
    """

    exit_status = 1
    __str__ = Exception.__str__  # the message, whatever the built-in error makes of it


class UsageError(QGraphError, ValueError):
    """The request itself is wrong: unknown names, impossible combinations or values out of range.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> qgraph.quantize(files("qgraph") / "demo_assets" / "digits.onnx", method="magic")
        Traceback (most recent call last):
            ...
        qgraph.errors.UsageError: unknown method 'magic': choose one of ...
    """

    exit_status = 2


class UnknownOptionError(UsageError, TypeError):
    """A keyword that no function of the package takes."""


class ModelError(QGraphError, ValueError):
    """The model cannot be read, is not valid ONNX, or has nothing to quantize.

    Example:
        >>> import qgraph
        >>> qgraph.quantize("missing.onnx")
        Traceback (most recent call last):
            ...
        qgraph.errors.ModelNotFoundError: no such model file: missing.onnx
    """


class ModelNotFoundError(ModelError, FileNotFoundError):
    """There is no such model file."""

    __new__ = FileNotFoundError.__new__  # type: ignore[assignment]  # ValueError's comes first and refuses


class ModelTypeError(ModelError, TypeError):
    """What was given as a model is an object of another kind."""


class DataError(QGraphError, ValueError):
    """Calibration or evaluation data are missing, malformed, or do not fit the model.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> qgraph.quantize(files("qgraph") / "demo_assets" / "digits.onnx", "missing.npz")
        Traceback (most recent call last):
            ...
        qgraph.errors.DataNotFoundError: no such data file or folder: missing.npz
    """


class DataNotFoundError(DataError, FileNotFoundError):
    """There is no such file or folder of samples."""

    __new__ = FileNotFoundError.__new__  # type: ignore[assignment]  # ValueError's comes first and refuses


class DataTypeError(DataError, TypeError):
    """What was given as samples or labels is an object of another kind."""


class NothingToDistilError(DataError):
    """Samples cannot be distilled from this model.

    Example:
        >>> import onnx
        >>> from qgraph.methods.zeroq.distill import distill
        >>> tokens = onnx.parser.parse_model(
        ...     '<ir_version: 8, opset_import: ["": 17]> g (int64[1, 4] x) => (float[1, 4] y) { y = Cast<to = 1>(x) }'
        ... )
        >>> distill(tokens)
        Traceback (most recent call last):
            ...
        qgraph.errors.NothingToDistilError: ...
    """


class PlanError(QGraphError, ValueError):
    """A plan is malformed, or was made for another model.

    Example:
        >>> import qgraph
        >>> qgraph.QuantPlan.from_json("{}")
        Traceback (most recent call last):
            ...
        qgraph.errors.PlanError: ...
    """


class PlanNotFoundError(PlanError, FileNotFoundError):
    """There is no such plan file."""

    __new__ = FileNotFoundError.__new__  # type: ignore[assignment]  # ValueError's comes first and refuses


class PlanTypeError(PlanError, TypeError):
    """What was given as a plan is an object of another kind."""


class StoreError(QGraphError):
    """The checkpoints of a job cannot be read or written, belong to another job, or are in use by another process."""


class ExecutorError(QGraphError, ConnectionError):
    """The machines that were to do the work cannot be reached, or were lost."""


class MissingPackageError(QGraphError, ImportError):
    """A package that a function needs, and that qgraph does not depend on, is not installed."""


class QualityWarning(UserWarning):
    """The quality of a file is below what was asked for; the message has the figures."""


def first_line(error: Exception) -> str:
    """The first line of another library's error message, without the details after it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def hint(name: str, known: list[str]) -> str:
    """The end of a message about an unknown name: the known names that may have been meant."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""
