"""Models that take one sample at a time, although their batch is open."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from qgraph.errors import ModelError
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset

_Result = TypeVar("_Result")
_Data = TypeVar("_Data", Dataset, Dataset | None)


def falling_back(model: Model, data: _Data, work: Callable[[_Data], _Result]) -> tuple[_Data, _Result]:
    """What `work` makes of the data, and the data: those given, or one sample at a time where the model runs on no
    other batch.

    Raises the `ModelError` of `work` where a sample alone does not run either.
    """
    try:
        return data, work(data)
    except ModelError:
        if data is None or not _takes_one(model, data):
            raise
    warnings.warn(
        f"{model.source} takes one sample at a time, although its batch size is open: running it as with --batch 1",
        stacklevel=3,
    )
    alone = replace(data, batch=1)
    return alone, work(alone)


def _takes_one(model: Model, data: Dataset) -> bool:
    """Whether a model that does not run on a batch runs on a sample alone."""
    if data.batch is not None or data.count < 2:
        return False
    session = Session(model.ir_model, threads=1)
    return not _runs(session, data) and _runs(session, replace(data, batch=1))


def _runs(session: Session, data: Dataset) -> bool:
    """Whether the first batch goes through."""
    try:
        session.run_list(next(data.batches()).feeds)
    except ModelError:
        return False
    return True
