"""The main job: a model in, a smaller one out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qgraph.assess.verify import verify
from qgraph.jobs.prepare import Gathered, gather
from qgraph.jobs.result import Result
from qgraph.methods.aciq.corrections import correct_outputs
from qgraph.methods.qrater import SearchConfig
from qgraph.methods.zeroq.allocate import Allocation
from qgraph.onnxfile.model import ModelLike
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import check_format
from qgraph.plan.saturation import without_saturation
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.samples.dataset import DataLike
from qgraph.samples.preprocessing import Preprocessing


def quantize(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    method: str | None = None,
    format: str = "qdq",
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    calibration: str | Path | None = None,
    opset: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: str | Path | None = None,
    executor: str = "local",
    on_better: Callable[[Result], object] | None = None,
    progress: Progress = SILENT,
    **overrides: Any,
) -> Result:
    """Quantize an ONNX model for onnxruntime on the CPU.

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model.
        data: calibration samples: a path (.npz, .npy, folder of images), arrays, or an iterable of batches.
        method: `minmax`, `aciq` (default with data), `zeroq` (default without: data are distilled from the model),
            `qrater` (found by measuring the task: see `search`), or `lsqplus` (trained: see `finetune`).
        format: `qdq` to deploy, `float` for a simulation in plain float operators.
        preprocessing: mean and std for images.
        limit: use at most this many samples.
        calibration: file of statistics: read if it exists, else written, so that observing is done once; it decides
            the plan alone, so that variants of a method are not tried on samples.
        opset: raise the model to this opset first.
        seed: of distilled data.
        resume: folder for the checkpoints of long stages; what it holds of the same job is continued.
        executor: where independent jobs run, `local` or `dask:ADDRESS`.
        on_better: called with every smaller result that a search for the smallest (`max_drop`) accepts on its way.
        overrides: `weights` (bits, "mixed" or None), `activations` (bits or None), `size_mb`, `clip`, `keep`, ...: the
            fields of `Recipe`.

    Raises:
        QGraphError: with a message that says what to do, for anything wrong with model, data or options.
    """
    check_format(format)
    source: dict[str, Any] = {"preprocessing": preprocessing, "limit": limit, "opset": opset}
    if method == "lsqplus":
        run = {"seed": seed, "threads": threads, "resume": resume, "progress": progress}
        return _trained(model, data, format=format, **source, **run, **overrides)
    job = Job(seed=seed, threads=threads, resume=resume, executor=executor, progress=progress)
    given = gather(model, data, job, method=method, calibration=calibration, **source, **overrides)
    allocation = None
    with job.stage("plan"):
        # a file of statistics decides alone
        plan = given.plan(format=format, samples=None if calibration is not None else given.samples)
    if given.recipe.mixed:
        better = None if on_better is None else lambda mixed: on_better(_result(given, mixed, format))
        plan, allocation = given.mixer(format=format, on_better=better).mix(plan)
    if given.recipe.ingredients:
        with job.stage("search"):
            plan = _searched(plan, given)
    if given.recipe.correct_outputs:
        with job.stage("correct"):
            samples = given.need_samples("--correct-outputs measures on samples")
            plan = correct_outputs(plan, given.view, samples, threads=threads, progress=progress)
    if given.recipe.target_cpu == "any":
        plan = without_saturation(plan, given.view)
    with job.stage("export"):
        result = _result(given, plan, format, allocation)
        _ = result.model
    with job.stage("verify"):
        verify(result.model, given.net, result.samples, threads=threads)
    job.finish()
    return result


def _result(given: Gathered, plan: QuantPlan, format: str, allocation: Allocation | None = None) -> Result:
    return Result(
        net=given.net,
        plan=plan,
        format=format,
        data=given.source,
        seconds=given.job.seconds,
        observed=given.observed,
        samples=given.samples,
        threads=given.job.threads,
        allocation=allocation,
    )


def _trained(model: ModelLike, data: DataLike | None, **options: Any) -> Result:
    from qgraph.jobs.finetune import finetune  # compiled kernels that nothing else needs

    return finetune(model, data, **options)


def _searched(plan: QuantPlan, given: Gathered) -> QuantPlan:
    """What Q-Rater finds from `plan`, with its default settings; `qgraph.search` has all of them."""
    from qgraph.jobs.search import polish  # a sampler that nothing else needs

    samples = given.need_samples("a search measures the task on samples")
    config = SearchConfig(ingredients=given.recipe.ingredients, fine=True, seed=given.job.seed)
    return polish(plan, given.net, samples, config=config, job=given.job).plan
