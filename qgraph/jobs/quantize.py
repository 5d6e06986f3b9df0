"""The main job: quantize a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgraph.assess.metric import MetricLike
from qgraph.assess.verify import verify
from qgraph.jobs.below import warn_of_result
from qgraph.jobs.finish import finished
from qgraph.jobs.guarded import guarded, parse_target
from qgraph.jobs.in_time import TargetLatency, foreteller, within
from qgraph.jobs.no_larger import no_larger, warn_if_larger
from qgraph.jobs.no_slower import no_slower
from qgraph.jobs.plan_judge import PlanJudge
from qgraph.jobs.prepare import Gathered, gather
from qgraph.jobs.products import best_products
from qgraph.jobs.result import Result
from qgraph.jobs.same_size import beside_others
from qgraph.jobs.trial import tell
from qgraph.methods.aciq.corrections import correct_outputs
from qgraph.onnxfile.model import ModelLike
from qgraph.plan.grids import sound
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import check_format
from qgraph.plan.registry import find
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.store import hold
from qgraph.running.threads import keeps_threads
from qgraph.running.wording import option
from qgraph.samples.dataset import DataLike
from qgraph.samples.preprocessing import Preprocessing

if TYPE_CHECKING:
    from qgraph.methods.zeroq.allocate import Allocation


@keeps_threads
def quantize(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    method: str | None = None,
    format: str | None = None,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    calibration: str | Path | None = None,
    opset: int | None = None,
    seed: int = 0,
    measure: bool = True,
    metric: MetricLike | None = None,
    guard: float | str | None = None,
    target_latency: float | str | None = None,
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
        method: `minmax`, `aciq` (default with data), `zeroq` (default without data: samples are distilled from the
            model), `qrater` (clips and roundings found by measuring the task, see `search`), `lsqplus` (trained, see
            `finetune`), or a method that another package registered (`qgraph.method`).
        format: `qdq` (default) to deploy, or `float` for a simulation in plain float operators.
        preprocessing: mean and std of images.
        limit: use at most this many samples.
        batch, shapes, batch_axes (among the overrides): the batch size, if the model takes only one; the sizes of
            dimensions that the model leaves open, by input; the axis along which the samples of an input run, if it
            is not 0 and cannot be told from the sizes.
        calibration: a file of statistics: read if it exists, written otherwise, so that the model is observed only
            once. The statistics alone then decide the plan; no variants of a method are tried on samples.
        opset: raise the model to this opset first.
        seed: for distilled data.
        measure: run the result beside the float model on held-out samples (`Result.quality`); if not, no guard acts.
        metric: measures the task, for the verdict and for `max_drop`: a function (outputs, labels) -> number, higher
            is better, or its name as `module:function`.
        guard: SQNR in dB that every output must keep, or "off". Grids that ruin an output are given up until it does.
            By default, where all grids have 8 bits, 20 dB and 98 % unchanged classes; other plans only get a warning,
            and so do outputs below 25 dB at 8 bits.
        target_latency: what the file may take of the float model's time on one thread, such as 0.6, or "5ms". Before
            anything is exported, layers whose integer kernels are slower on this machine get floats, as far as that
            helps; an error says what is foretold where no plan is fast enough.
        threads: threads of onnxruntime and of independent jobs; by default as many as there are CPUs.
        resume: folder for checkpoints of long stages; the same job continues from what it finds there.
        executor: where independent jobs run: `local` or `dask:ADDRESS`.
        on_better: with `max_drop`, called with every smaller result that the search accepts on its way.
        progress: is told of stages and steps.
        overrides: fields of `Recipe`, such as `weights` and `activations` (bits, "mixed" or None), `size_mb`,
            `clip` or `keep`; `protocol` "paper" sets what the paper of the method says, and `settings`, such as
            {"zeroq.steps": 500}, its hyper-parameters.

    Raises:
        QGraphError: something is wrong with the model, the data or the options; the message says what to do.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> result = qgraph.quantize(network, samples, limit=16, method="minmax", weights=4, measure=False)
        >>> [layer.weight_bits for layer in result.layers]
        [8, 4, 4, 4, 4, 4, 8]
    """
    if format is not None:
        check_format(format)
    target = None if target_latency is None else TargetLatency.parse(target_latency)
    source: dict[str, Any] = {"preprocessing": preprocessing, "limit": limit, "opset": opset, "metric": metric}
    if method is not None and find(method).trains:
        run: dict[str, Any] = {"seed": seed, "measure": measure, "threads": threads, "resume": resume}
        run |= {"executor": executor, "progress": progress}
        return _trained(model, data, method=method, format=format or "qdq", **source, **run, **overrides)
    job = Job(seed=seed, threads=threads, resume=resume, executor=executor, progress=progress)
    with hold(resume):
        given = gather(model, data, job, method=method, format=format, calibration=calibration, **source, **overrides)
        fixed = overrides.get("activations") is not None or any(
            ":activations=" in change for change in given.recipe.changes
        )
        return _quantized(given, on_better, measure=measure, guard=guard, fixed=fixed, target=target)


def _quantized(
    given: Gathered,
    on_better: Callable[[Result], object] | None,
    *,
    measure: bool,
    guard: float | str | None,
    fixed: bool,
    target: TargetLatency | None = None,
) -> Result:
    """The result for everything gathered; `fixed`: the caller asked for quantized activations."""
    job, allocation = given.job, None
    others: tuple[str, ...] = ()
    judge = cache(lambda: PlanJudge(given))
    with job.stage("plan"):
        plan = best_products(given, given.plan(), judge=judge, fixed=fixed, guarded=measure and guard != "off")
    if given.recipe.mixed:
        better = None if on_better is None else lambda mixed: on_better(_result(given, mixed))
        plan, allocation = given.mixer(on_better=better).mix(plan)
    mixed = plan
    with job.stage("search"):
        plan, added = finished(plan, given)
    if given.recipe.correct_outputs:
        with job.stage("correct"):
            samples = given.need_samples(f"{option('correct_outputs', True)} measures on samples")
            plan = correct_outputs(plan, given.view, samples, threads=job.threads, progress=job.progress)
    plan = _settled(sound(plan, given.view, target_cpu=given.recipe.target_cpu), given)
    if measure and allocation is not None:
        with job.stage("compare"):
            others = beside_others(mixed, plan, given, added=added)
    if target is not None:
        with job.stage("latency"):
            plan = within(target, plan, foreteller(given.net, given.samples))
    with job.stage("export"):
        result = no_larger(_result(given, plan, allocation, others, measure=measure), fixed=fixed)
        _ = result.model
    if measure:
        with job.stage("measure"):
            _ = result.quality
    if result.quality is None or result.quality.notes:  # else the file has run already
        with job.stage("verify"):
            verify(result.model, given.net, result.samples, threads=job.threads)
    if measure:
        with job.stage("guard"):
            quick = no_slower(result, fixed=fixed)
            result = guarded(given, quick, judge=judge, guard_db=guard)
            result = result if result is quick else no_slower(result, fixed=fixed)
            result = _replanned(result, _settled(result.plan, given))
        with job.stage("layers"):
            _ = result.layers_in_file
        tell(result.warnings())
        if guard != "off":
            warn_of_result(result, None if guard is None else parse_target(guard))
    warn_if_larger(result)
    job.finish()
    return result


def _settled(plan: QuantPlan, given: Gathered) -> QuantPlan:
    """The plan as it is written: the same on every processor, where the recipe asks for that."""
    if not given.recipe.portable:
        return plan
    from qgraph.methods.portable.portable import made_portable

    return made_portable(plan, given.view, given.observed)


def _replanned(result: Result, plan: QuantPlan) -> Result:
    return result if plan == result.plan else dataclasses.replace(result, plan=plan)


def _result(
    given: Gathered,
    plan: QuantPlan,
    allocation: Allocation | None = None,
    others: tuple[str, ...] = (),
    *,
    measure: bool = False,
) -> Result:
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
        others=others,
    )


def _trained(model: ModelLike, data: DataLike | None, **options: Any) -> Result:
    from qgraph.jobs.finetune import finetune  # compiled kernels that nothing else needs

    return finetune(model, data, **options)
