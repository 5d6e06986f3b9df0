"""Apply an existing plan to its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qgraph.assess.metric import MetricLike, load_metric
from qgraph.assess.verdict import Verdict
from qgraph.assess.verify import verify
from qgraph.jobs.below import warn_below
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
    """A quantized model and the verdict on it (None where none was asked for)."""

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
    """Quantize a model as a plan says: the same file as the job that wrote the plan.

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model; it must be the one the plan was made for.
        plan: what to quantize, and how.
        data: samples to judge the result on; they do not change it; outputs below 20 dB on them are warned of. Without
            data it is judged on noise.
        format: `qdq` to deploy, or `float` for a simulation in plain float operators.
        opset, preprocessing, limit, batch, shapes, batch_axes, metric, threads: as in `quantize`.
        measure: compare the result with the float model in onnxruntime (`Applied.quality`).

    Raises:
        PlanError: the plan was made for another model, or names what the model does not have.
        QGraphError: anything else is wrong with the model, the data or the options.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
        >>> plan = qgraph.quantize(network, activations=None, measure=False).plan
        >>> applied = qgraph.apply(network, plan, measure=False)
        >>> applied.source == str(network)
        True
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
        warn_below(quality)
    return Applied(ir_model=lowered, source=net.source, nbytes=net.nbytes, digest=net.digest, quality=quality)
