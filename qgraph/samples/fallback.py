"""Models that take one sample at a time although their batch size is open."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from qgraph.errors import ModelError
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import Session
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset

_Result = TypeVar("_Result")
_Data = TypeVar("_Data", Dataset, Dataset | None)


def falling_back(model: Model, data: _Data, work: Callable[[_Data], _Result]) -> tuple[_Data, _Result]:
    """Do `work` on the data, one sample at a time if the model runs on no larger batch; return the data and the result.

    Raises the `ModelError` of `work` if a single sample does not run either.
    """
    try:
        return data, work(data)
    except ModelError:
        if data is None or not _takes_one(model, data):
            raise
    warnings.warn(
        f"{model.source} takes one sample at a time, although its batch size is open: running it as with "
        f"{option('batch', 1)}",
        stacklevel=3,
    )
    alone = replace(data, batch=1)
    return alone, work(alone)


def _takes_one(model: Model, data: Dataset) -> bool:
    """Whether a model that does not run on a batch runs on a single sample."""
    if data.batch is not None or data.count < 2:
        return False
    session = Session(model.ir_model, threads=1)
    return not _runs(session, data) and _runs(session, replace(data, batch=1))


def _runs(session: Session, data: Dataset) -> bool:
    """Whether the first batch runs."""
    try:
        session.run_list(next(data.batches()).feeds)
    except ModelError:
        return False
    return True
