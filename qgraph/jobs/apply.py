"""A plan that exists, applied to its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qgraph.assess.metric import MetricLike, load_metric
from qgraph.assess.verdict import Verdict
from qgraph.assess.verify import verify
from qgraph.jobs.trial import Trial
from qgraph.lowering.lower import lower
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.opset import prepare
from qgraph.plan.plan import QuantPlan
from qgraph.running.progress import SILENT, Progress
from qgraph.samples.dataset import DataLike, open_data
from qgraph.samples.preprocessing import Preprocessing
from qgraph.samples.split import hold_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied(Model):
    """A quantized model, and what it is worth; None where that was not to be measured."""

    quality: Verdict | None = None


def apply(
    model: ModelLike,
    plan: QuantPlan,
    data: DataLike | None = None,
    *,
    format: str = "qdq",
    opset: int | None = None,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
    measure: bool = True,
    metric: MetricLike | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Applied:
    """The model quantized as a plan says, loaded once in onnxruntime; the same bytes as the `quantize` of the plan.

    `data` change nothing in it: the verdict is measured on those of them that a job on the same data keeps apart, and
    without data on noise.
    """
    by = None if metric is None else load_metric(metric)
    loaded = load(model)
    net = prepare(loaded, opset=opset, fold_bn=plan.fold_bn)
    samples = (
        None
        if data is None
        else open_data(
            data, net, preprocessing=preprocessing, limit=limit, batch=batch, shapes=shapes, batch_axes=batch_axes
        )
    )
    lowered = lower(net, plan, format=format)
    verify(lowered, net, samples)
    quality = None
    if measure:
        held = None if samples is None else hold_out(samples).held_out
        trial = Trial(reference=loaded, samples=held, basis="given", metric=by, progress=progress)
        quality = trial.judge(lowered, threads=threads)
    return Applied(ir_model=lowered, source=net.source, nbytes=net.nbytes, digest=net.digest, quality=quality)
