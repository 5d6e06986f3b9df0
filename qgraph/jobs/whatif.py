"""What other bits for some layers would change: predicted from statistics, and measured where data are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from qgraph.assess.foretold import Foretold
from qgraph.assess.layer_errors import LayerReport, expected_signals, layer_reports
from qgraph.assess.verdict import Verdict
from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView
from qgraph.jobs.given import open_given
from qgraph.jobs.in_time import foreteller
from qgraph.jobs.trial import Trial
from qgraph.lowering.lower import lower
from qgraph.lowering.packing import stored_bytes
from qgraph.methods.portable.portable import made_portable
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.write import serialised
from qgraph.plan.changes import parsed
from qgraph.plan.check import checked
from qgraph.plan.edit import edited
from qgraph.plan.expected import expected_shift
from qgraph.plan.given import PlanLike, given_plan
from qgraph.plan.plan import QuantPlan
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import fits_one_file
from qgraph.running.threads import keeps_threads
from qgraph.running.views import drawn_by
from qgraph.samples.dataset import DataLike, Dataset, Reading
from qgraph.samples.split import hold_out

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WhatIf:
    """A plan with other bits for some layers, beside the plan that it was made from.

    `layers` are the reports (before, after) on every layer whose weight or operand changed, `nbytes` the sizes of both
    files, and `quality` the verdicts on both; None without data. `latency` is what is foretold for both, if asked for.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> result = qgraph.quantize(demo / "digits.onnx", demo / "digits_calibration.npz", limit=16, measure=False)
        >>> found = result.whatif("reduce/conv:weights=3")
        >>> found.nbytes[1] < found.nbytes[0]
        True
        >>> found
        WhatIf(1 layer changes, ... -> ... bytes...)
    """

    plan: QuantPlan
    layers: tuple[tuple[LayerReport, LayerReport], ...]
    nbytes: tuple[int, int]
    quality: tuple[Verdict, Verdict] | None = None
    latency: tuple[Foretold, Foretold] | None = None

    def __repr__(self) -> str:
        count, (before, after) = len(self.layers), self.nbytes
        said = [f"{count} layer{'s change' if count != 1 else ' changes'}", f"{before:,} -> {after:,} bytes"]
        if self.quality is not None:
            worst = [verdict.worst for verdict in self.quality]
            figures = ["exact" if w is None or w.sqnr_db is None else f"{w.sqnr_db:.1f}" for w in worst]
            said.append(f"worst output {' -> '.join(figures)} dB")
        return f"WhatIf({', '.join(said)})"

    def _repr_html_(self) -> str:
        return str(drawn_by("cells").changes_cell(self))

    def to_frame(self) -> DataFrame:
        """The layers that change as a pandas data frame, before and after. Needs pandas."""
        return drawn_by("frames").changes_frame(self)

    def to_dict(self) -> dict[str, Any]:
        """What `qgraph whatif --json` prints."""
        return {
            "layers": [
                {"name": before.name, "before": _described(before), "after": _described(after)}
                for before, after in self.layers
            ],
            "bytes": {"before": self.nbytes[0], "after": self.nbytes[1]},
            "latency": None
            if self.latency is None
            else {"before": self.latency[0].ratio, "after": self.latency[1].ratio},
            "quality": None
            if self.quality is None
            else {"before": self.quality[0].to_dict(), "after": self.quality[1].to_dict()},
        }


def _described(report: LayerReport) -> dict[str, Any]:
    names = ("weight_bits", "activation_bits", "weight_bytes", "predicted_sqnr_db", "simulated_sqnr_db")
    return {name: getattr(report, name) for name in names}


@keeps_threads
def whatif(
    model: ModelLike,
    plan: PlanLike,
    changes: str | Sequence[str],
    data: DataLike | None = None,
    *,
    statistics: Observations | str | Path | None = None,
    latency: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> WhatIf:
    """Change the bits of some layers in a plan, and say what that changes.

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model; the one the plan was made for.
        plan: the plan to change, the path of its file, or a result that has one; it stays as it is.
        changes: such as `stem/conv:weights=3` or `layer2.*:activations=6`; the last that matches a layer counts.
        data: samples to measure both files on; without them errors are only predicted, relative to a signal whose
            channels are taken for independent (what a change costs in dB does not depend on that).
        statistics: those that the plan was made from (`qgraph quantize --plan` writes them beside the plan), or a file
            of them; without statistics and data nothing can be predicted.
        latency: foretell the latency of both plans, relative to the float model's, from kernel times of this machine.
        threads, progress, and how data are read: as in `quantize`.

    Raises:
        UsageError: a change is not understood, or matches no layer.
        PlanError: the plan does not fit the model, or a layer has no grid to change.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> result = qgraph.quantize(network, samples, limit=32, measure=False)
        >>> found = qgraph.whatif(network, result.plan, ["stem/conv:weights=3"], statistics=result.observed)
        >>> before, after = found.layers[0]
        >>> before.weight_bits, after.weight_bits, before.predicted_sqnr_db > after.predicted_sqnr_db
        (8, 3, True)
    """
    plan, changes = given_plan(plan), [changes] if isinstance(changes, str) else changes
    given = open_given(model, data, fold_bn=plan.fold_bn, **reading)
    plan.check_model(given.net.digest, given.net.source)
    observed = Observations.load(statistics) if isinstance(statistics, (str, Path)) else statistics
    if observed is not None:
        observed.check_model(given.net)
    elif given.samples is not None:
        observed = observe(given.net, given.samples, histograms=True, threads=threads, progress=progress)
    found = compared(given.net, plan, changes, observed, given.samples, threads=threads)
    if latency:
        foretell = foreteller(given.net, given.samples)
        found = dataclasses.replace(found, latency=(foretell(plan), foretell(found.plan)))
    if given.samples is None:
        return found
    trial = Trial(reference=given.loaded, samples=hold_out(given.samples).held_out, basis="given", progress=progress)
    return judged(found, given.net, plan, trial, threads=threads)


def judged(found: WhatIf, net: Model, plan: QuantPlan, trial: Trial, *, threads: int | None = None) -> WhatIf:
    """The same with the verdicts on the files of `plan` and of the changed one."""
    before, after = (trial.judge(lower(net, p, format="qdq"), threads=threads) for p in (plan, found.plan))
    return dataclasses.replace(found, quality=(before, after))


def compared(
    net: Model,
    plan: QuantPlan,
    changes: Sequence[str],
    observed: Observations | None,
    samples: Dataset | None = None,
    *,
    threads: int | None = None,
) -> WhatIf:
    """The changed plan beside `plan`, with predicted errors, and with simulated ones where there are samples."""
    if not changes:
        raise UsageError("say what to change, such as 'stem/conv:weights=3'")
    view = GraphView(net)
    plan = checked(plan, view)
    other = shifted_again(edited(plan, view, parsed(changes), observed), plan, view, observed)
    if plan.portable:
        other = made_portable(other, view, observed)
    signals = {} if observed is None else expected_signals(view, plan, observed)
    reports = [layer_reports(view, p, observed, samples, signals=signals, threads=threads) for p in (plan, other)]
    same = {quant.name for quant in plan.layers if quant in other.layers}
    moved = {grid.tensor for grid in {*plan.activations} ^ {*other.activations}}
    pairs = tuple(
        (before, after)
        for before, after in zip(*reports, strict=True)
        if before.name not in same
        or before.activation_bits != after.activation_bits
        or str(view.by_name[before.name].input.name) in moved
    )
    return WhatIf(plan=other, layers=pairs, nbytes=(_size(net, view, plan), _size(net, view, other)))


def _size(net: Model, view: GraphView, plan: QuantPlan) -> int:
    """The bytes of the plan's file; of its weights alone where they do not fit in one file."""
    model = lower(net, plan, format="qdq")
    if fits_one_file(model):
        return len(serialised(model))
    return sum(stored_bytes(view.by_name[quant.name].weight_array().shape, quant.weight) for quant in plan.layers)


def shifted_again(plan: QuantPlan, before: QuantPlan, view: GraphView, observed: Observations | None) -> QuantPlan:
    """The plan, with biases of changed layers shifted by the expected change of outputs if they were shifted before."""
    had = {quant.name for quant in before.layers if quant.bias_shift}
    layers = []
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        if observed is not None and quant.name in had and not quant.bias_shift and not layer.weight_only:
            channels = observed.operand(layer).channels
            if channels is not None and np.size(channels.mean):
                shift = expected_shift(layer, quant, np.asarray(channels.mean)).astype(np.float32)
                quant = dataclasses.replace(quant, bias_shift=tuple(map(float, shift)))
        layers.append(quant)
    return dataclasses.replace(plan, layers=tuple(layers))
