"""Apply an existing plan to its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import onnx

from qgraph.assess.metric import MetricLike, load_metric
from qgraph.assess.verdict import Verdict
from qgraph.assess.verify import verify
from qgraph.graph.sites import GraphView
from qgraph.jobs.below import expected_db, warn_below
from qgraph.jobs.given import open_given
from qgraph.jobs.trial import Trial
from qgraph.lowering.lower import lower
from qgraph.methods.portable.portable import made_portable
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.write import to_proto
from qgraph.plan.blocks import BLOCK_OPSET
from qgraph.plan.check import checked
from qgraph.plan.given import PlanLike, given_plan
from qgraph.plan.plan import QuantPlan
from qgraph.running.progress import SILENT, Progress
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Reading
from qgraph.samples.split import hold_out


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Applied(Model):
    """A quantized model, the plan that it was made from, and the verdict on it (None where none was asked for)."""

    plan: QuantPlan
    quality: Verdict | None = None

    def __repr__(self) -> str:
        return f"Applied({self.source}, opset {self.opset})"

    def to_proto(self) -> onnx.ModelProto:
        """The model as an `onnx.ModelProto`, equal to the file that `qgraph.save` writes."""
        return to_proto(self.ir_model)


@keeps_threads
def apply(
    model: ModelLike,
    plan: PlanLike,
    data: DataLike | None = None,
    *,
    format: str = "qdq",
    portable: bool = False,
    opset: int | None = None,
    measure: bool = True,
    metric: MetricLike | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Applied:
    """Quantize a model as a plan says: the same file as the job that wrote the plan.

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model; it must be the one the plan was made for.
        plan: what to quantize, and how: a plan, the path of its file, or a result that has one.
        data: samples to judge the result on, with a warning for outputs below 25 dB (20 dB for grids below
            8 bits); they do not change it. Without data it is judged on noise.
        format: `qdq` to deploy, or `float` for a simulation in plain float operators.
        portable: change steps and codes as little as needed for the same codes on every processor.
        opset, preprocessing, limit, batch, shapes, batch_axes, metric, threads: as in `quantize`.
        measure: compare the result with the float model in onnxruntime (`Applied.quality`).

    Raises:
        PlanError: the plan was made for another model, names what the model does not have, or does not fit it: a wrong
            length or axis, a number that is not finite in float32, a scale that clips most of a weight.
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
    plan, by = given_plan(plan), None if metric is None else load_metric(metric)
    least = BLOCK_OPSET if any(layer.runs == "blocks" for layer in plan.layers) else 0
    given = open_given(model, data, opset=opset, least_opset=least, fold_bn=plan.fold_bn, **reading)
    net, samples = given.net, given.samples
    plan.check_model(net.digest, net.source)
    view = GraphView(net)
    plan = checked(plan, view)
    if portable:
        plan = made_portable(plan, view)
    lowered = lower(net, plan, format=format)
    quality = None
    if measure:
        held = None if samples is None else hold_out(samples).held_out
        trial = Trial(reference=given.loaded, samples=held, basis="given", metric=by, progress=progress)
        quality = trial.judge(lowered, threads=threads)
    if quality is None or quality.notes:  # else the file has run already
        verify(lowered, net, samples)
    if quality is not None:
        advice = "the grids are those of the plan: edit it, or let qgraph quantize find new ones"
        warn_below(quality, expected_db(plan), advice=advice)
    return Applied(
        ir_model=lowered, plan=plan, source=net.source, nbytes=net.nbytes, digest=net.digest, quality=quality
    )
