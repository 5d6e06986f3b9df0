"""Distil samples from the model itself when the caller has none."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import NothingToDistilError
from qgraph.jobs.given import Given
from qgraph.methods.zeroq.config import DistillConfig
from qgraph.onnxfile.model import Model
from qgraph.running.job import Job
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset, Reading, open_data
from qgraph.samples.layout import batch_axes, shaped
from qgraph.samples.preprocessing import Preprocessing

DISTILLED = 32  # samples distilled by default (ZeroQ, section IV)
FOR_ROUNDING = 128  # where codes are chosen by them, too: more of them are less alike
FEWEST = 8  # of large networks, whose samples have many more positions


def distilled_samples(
    given: Given,
    job: Job,
    reading: Reading,
    *,
    count: int | None = None,
    rounding: bool = False,
    noise: bool = True,
    config: DistillConfig | None = None,
) -> Dataset:
    """Distil inputs for the batch and the shapes of `reading`, as samples of the normalised network.

    By default there are `DISTILLED`, for `rounding` to second order `FOR_ROUNDING`, or as many as can be optimised at
    once where that is less, but `FEWEST` at least.
    Without `noise`, raises `NothingToDistilError` where they would be noise.
    """
    config = config or DistillConfig()
    batch, shapes = reading.get("batch"), reading.get("shapes")
    said = batch_axes(given.loaded.input_values(), reading.get("batch_axes") or {})
    axes = {name: axis for name, axis in said.items() if axis is not None}
    if count is None:
        from qgraph.methods.zeroq.distill import affordable  # gradients take a while to import

        wanted = FOR_ROUNDING if rounding else DISTILLED
        most = affordable(config, given.loaded, wanted, _sizes(given.loaded, shapes, axes), axes)
        count = min(max(most, FEWEST), wanted)
    inputs = distilled_inputs(
        given.loaded,
        job,
        count=count,
        config=config,
        batch=batch,
        shapes=shapes,
        axes=axes,
        preprocessing=reading.get("preprocessing"),
        noise=noise,
    )
    return open_data(inputs, given.net, batch=batch, batch_axes=axes)


def distilled_inputs(
    model: Model,
    job: Job,
    *,
    count: int,
    config: DistillConfig | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    axes: Mapping[str, int] | None = None,
    preprocessing: Preprocessing | None = None,
    noise: bool = True,
) -> Mapping[str, NDArray[np.float32]]:
    """Distil inputs from the model (ZeroQ) and report progress; warn where the model has nothing to distil from."""
    from qgraph.methods.zeroq.distill import NOISE, distill  # gradients take a while to import

    config = config or DistillConfig()
    config = config if batch is None else replace(config, batch=batch)
    open_shapes = _sizes(model, shapes, axes)
    planned = -(-count // config.batch) * config.steps
    seen = 0
    with job.progress.stage("distilling", planned, pieces=planned // config.steps) as advance:

        def on_step(done: int, total: int, loss: float) -> None:
            nonlocal seen
            now = planned * done // total  # a model without BatchNormalization takes fewer steps than planned
            advance(now - seen, f"loss {loss:.3g}")
            seen = now

        result = distill(
            model,
            count=count,
            config=config,
            seed=job.seed,
            threads=job.threads,
            resume=job.resume,
            executor=job.executor,
            preprocessing=preprocessing,
            on_step=on_step,
            shapes=open_shapes,
            batch_axes=axes,
        )
    if result.note == NOISE and not noise:
        raise NothingToDistilError(f"{model.source} has no BatchNormalization to distil from; give {option('data')}")
    if result.note:
        warnings.warn(f"{model.source}: {result.note}", stacklevel=2)
    return result.inputs


def _sizes(
    model: Model, shapes: Mapping[str, Sequence[int]] | None, axes: Mapping[str, int] | None
) -> dict[str, list[Any]]:
    """The shapes of inputs, with the open sizes that the caller gave."""
    return {str(v.name): list(v.shape or ()) for v in shaped(model.input_values(), shapes or {}, axes or {})}
