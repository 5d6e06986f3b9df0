"""Make sure that onnxruntime runs a quantized model before it is returned."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.observe.statistics import MAX_BATCH
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import Session, fits_one_file, without_weights
from qgraph.running.wording import Blank, option
from qgraph.samples.dataset import Batch, Dataset


def verify(quantized: ir.Model, net: Model, samples: Dataset | None, *, threads: int | None = None) -> None:
    """Load the quantized form of `net` in onnxruntime, and run it if there is a sample.

    onnxruntime holds all weights of a model that it runs. If weights stay in their file and there is no sample to run,
    it only loads the graph: operators, types and shapes are checked, results are not.

    Raises `ModelError` if onnxruntime refuses the model (and says so where it refuses `net` as well), or an output has
    another type than `net` declares.
    """
    try:
        alone = samples is None and not fits_one_file(quantized)
        session = Session(without_weights(quantized) if alone else quantized, threads=threads)
        produced = [] if samples is None else first_run(session, samples)[2]
    except ModelError as error:
        _check_runs(net, samples, threads)
        raise ModelError(
            f"{net.source}: the quantized model does not run: {error}; leave layers in floating point with "
            f"{option('keep', [Blank('NAME')])}, or use {option('format', 'float')}"
        ) from error
    for output, array in zip(net.graph.outputs, produced, strict=False):
        wanted = output.dtype.numpy() if output.dtype is not None else None
        if wanted is not None and isinstance(array, np.ndarray) and array.dtype != wanted:
            raise ModelError(
                f"{net.source}: output '{output.name}' of the quantized model is {array.dtype}, not {wanted}; "
                f"leave the layers before it in floating point with {option('keep', [Blank('NAME')])}"
            )


def _check_runs(net: Model, samples: Dataset | None, threads: int | None) -> None:
    """Raise `ModelError` where it is the float model that does not run."""
    try:
        session = Session(net.ir_model, threads=threads)
        if samples is not None:
            first_run(session, samples)
    except ModelError as error:
        raise ModelError(
            f"{net.source} itself does not run: {error}; export it with types and operators that onnxruntime's CPU "
            f"provider has"
        ) from error


def first_run(session: Session, samples: Dataset) -> tuple[int, Batch, list[NDArray[Any]]]:
    """The number of samples to run at a time, the first batch of that size, and its outputs.

    That is 1, or the size of a batch if the model does not take single samples; raises `ModelError` if neither runs.
    """
    try:
        batch = next(samples.batches(1))
        return 1, batch, session.run_list(batch.feeds)
    except ModelError:
        batch = next(samples.batches(MAX_BATCH))
        return MAX_BATCH, batch, session.run_list(batch.feeds)
