"""The main job: a model in, a smaller one out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qgraph.assess.metric import MetricLike
from qgraph.assess.verify import verify
from qgraph.jobs.guarded import guarded, no_slower
from qgraph.jobs.prepare import Gathered, gather
from qgraph.jobs.result import Result
from qgraph.jobs.trial import tell
from qgraph.methods.aciq.corrections import correct_outputs
from qgraph.methods.zeroq.allocate import Allocation
from qgraph.onnxfile.model import ModelLike
from qgraph.plan.grids import sound
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import check_format
from qgraph.plan.registry import chain, find
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.store import hold
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
    measure: bool = True,
    metric: MetricLike | None = None,
    guard: float | str | None = None,
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
            `qrater` (found by measuring the task: see `search`), `lsqplus` (trained: see `finetune`), or what another
            package registered (`qgraph.method`).
        format: `qdq` to deploy, `float` for a simulation in plain float operators.
        preprocessing: mean and std for images.
        limit: use at most this many samples.
        batch, shapes, batch_axes: among the overrides: how many samples the model takes at a time, where only so many;
            the sizes of inputs that the model leaves open, by input; the axis along which the samples of an input run,
            where that is not 0 and not found from the sizes.
        calibration: file of statistics: read if it exists, else written, so that observing is done once; it decides
            the plan alone, so that variants of a method are not tried on samples.
        opset: raise the model to this opset first.
        seed: of distilled data.
        measure: run what will be written beside the float model, on samples that took no part: `Result.quality`.
        metric: what the task is measured by, for the verdict and `max_drop`: a function (outputs, labels) -> number,
            higher is better, or its name as `module:function`.
        guard: dB that every output must keep, or "off": grids that ruin an output give way until it holds. By default
            20, and 98 % of the classes of scores, where all grids have 8 bits; other plans get a warning alone.
        resume: folder for the checkpoints of long stages; what it holds of the same job is continued.
        executor: where independent jobs run, `local` or `dask:ADDRESS`.
        on_better: called with every smaller result that a search for the smallest (`max_drop`) accepts on its way.
        overrides: `weights` (bits, "mixed" or None), `activations` (bits or None), `size_mb`, `clip`, `keep`, ...: the
            fields of `Recipe`.

    Raises:
        QGraphError: with a message that says what to do, for anything wrong with model, data or options.
    """
    check_format(format)
    source: dict[str, Any] = {"preprocessing": preprocessing, "limit": limit, "opset": opset, "metric": metric}
    if method is not None and find(method).trains:
        run = {"seed": seed, "measure": measure, "threads": threads, "resume": resume, "progress": progress}
        return _trained(model, data, method=method, format=format, **source, **run, **overrides)
    job = Job(seed=seed, threads=threads, resume=resume, executor=executor, progress=progress)
    with hold(resume):
        given = gather(model, data, job, method=method, format=format, calibration=calibration, **source, **overrides)
        fixed = overrides.get("activations") is not None
        return _quantized(given, on_better, measure=measure, guard=guard, fixed=fixed)


def _quantized(
    given: Gathered,
    on_better: Callable[[Result], object] | None,
    *,
    measure: bool,
    guard: float | str | None,
    fixed: bool,
) -> Result:
    """All that follows from what was gathered; `fixed`: the caller has said that activations are quantized."""
    job, allocation = given.job, None
    with job.stage("plan"):
        plan = given.plan()
    if given.recipe.mixed:
        better = None if on_better is None else lambda mixed: on_better(_result(given, mixed))
        plan, allocation = given.mixer(on_better=better).mix(plan)
    if any(step.once for name in given.recipe.methods for step in chain(name)):
        with job.stage("search"):
            plan = given.finished(plan)
    if given.recipe.correct_outputs:
        with job.stage("correct"):
            samples = given.need_samples("--correct-outputs measures on samples")
            plan = correct_outputs(plan, given.view, samples, threads=job.threads, progress=job.progress)
    plan = sound(plan, given.view, target_cpu=given.recipe.target_cpu)
    with job.stage("export"):
        result = _result(given, plan, allocation, measure=measure)
        _ = result.model
    with job.stage("verify"):
        verify(result.model, given.net, result.samples, threads=job.threads)
    if measure:
        with job.stage("measure"):
            _ = result.quality
        with job.stage("guard"):
            result = guarded(given, no_slower(result, fixed=fixed), guard_db=guard)
        with job.stage("layers"):
            _ = result.layers_in_file
        tell(result.warnings())
    job.finish()
    return result


def _result(given: Gathered, plan: QuantPlan, allocation: Allocation | None = None, *, measure: bool = False) -> Result:
    return Result(
        net=given.net,
        plan=plan,
        format=given.format,
        data=given.source,
        seconds=given.job.seconds,
        observed=given.observed,
        samples=given.samples,
        threads=given.job.threads,
        trial=given.trial if measure else None,
        allocation=allocation,
    )


def _trained(model: ModelLike, data: DataLike | None, **options: Any) -> Result:
    from qgraph.jobs.finetune import finetune  # compiled kernels that nothing else needs

    return finetune(model, data, **options)
