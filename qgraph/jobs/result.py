"""The result of quantizing a model: its plan, its graph, and a report on every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from qgraph.assess.coverage import beyond
from qgraph.assess.layer_errors import LayerReport, layer_reports
from qgraph.assess.layers_in_file import InFile, layers_in_file
from qgraph.assess.verdict import Verdict
from qgraph.graph.sites import GraphView
from qgraph.jobs.trial import Trial
from qgraph.lowering.lower import lower
from qgraph.methods.guard.concessions import Concession
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.write import save, to_proto
from qgraph.plan.check import checked
from qgraph.plan.described import bits_said
from qgraph.plan.plan import QuantPlan
from qgraph.running.views import Page, drawn_by
from qgraph.samples.dataset import Dataset
from qgraph.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from qgraph.jobs.whatif import WhatIf
    from qgraph.methods.zeroq.allocate import Allocation

SMALL = 2**26  # bytes of a model whose file is made to tell its size


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The concessions of the guard, what they were made for, and the verdict on the file before them."""

    target_db: float
    goal: str
    concessions: tuple[Concession, ...]
    before: Verdict

    def lines(self, after: Verdict) -> tuple[str, ...]:
        """What was given up and what that costs, one line each."""
        share = (after.nbytes - self.before.nbytes) / max(self.before.float_nbytes, 1)
        cost = f"{share:+.1%} of the float model's bytes"
        if after.latency is not None and self.before.latency is not None:
            cost += f", latency {self.before.latency:.2f} -> {after.latency:.2f} of float's"
        count = len(self.concessions)
        head = f"guard: {count} grid{'s' * (count != 1)} gave way for {self.goal} ({cost})"
        return head, *(f"  {concession}" for concession in self.concessions)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target_db": self.target_db,
            "goal": self.goal,
            "bytes_before": self.before.nbytes,
            "latency_before": self.before.latency,
            "concessions": [concession.to_dict() for concession in self.concessions],
        }


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result:
    """A quantized model with its plan, its layers, its verdict, and the seconds of each stage.

    `net` is the normalised float network, `format` is `qdq` or `float`, and `data` is where the samples came from:
    `calibration`, `distilled` or `none`. A notebook shows a result as a table; `plot`, `to_frame` and `report` show
    more of it, `whatif` other bits.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
        >>> result = qgraph.quantize(network, activations=None, weights=4, measure=False)
        >>> result.nbytes < 0.2 * result.net.nbytes
        True
        >>> result.plan.layer(result.layers[1].name).weight.bits
        4
        >>> result
        Result(digits.onnx: 7 layers, weights of 8 and 4 bits; ... bytes, 0.1... of float; not measured)
    """

    net: Model
    plan: QuantPlan
    format: str
    data: str
    seconds: dict[str, float]
    observed: Observations | None = None
    samples: Dataset | None = None
    threads: int | None = None
    trial: Trial | None = None
    """What `quality` is measured on; None where it is not measured."""
    allocation: Allocation | None = None
    """For mixed bits: the sensitivities, the Pareto frontier and the choice."""
    others: tuple[str, ...] = ()
    """For mixed weights: how other files of their size compare, in words."""
    given_up: GivenUp | None = None
    """What the guard gave up so that the outputs meet their target; None if nothing."""

    def __repr__(self) -> str:
        """One line of what is known already: nothing is measured to print it."""
        known = self.__dict__
        count = len(self.plan.layers)
        what = ", ".join([f"{count} layer{'s' * (count != 1)}", *bits_said(self.plan)])
        quality: Verdict | None = known.get("quality")
        nbytes = quality.nbytes if quality is not None else self.nbytes if self.net.nbytes < SMALL else None
        size = "" if nbytes is None else f"; {nbytes:,} bytes, {nbytes / max(self.net.nbytes, 1):.2f} of float"
        worst = None if quality is None else quality.worst
        judged = "not measured" if worst is None or worst.sqnr_db is None else f"{worst.name} {worst.sqnr_db:.1f} dB"
        return f"{type(self).__name__}({Path(self.net.source).name}: {what}{size}; {judged})"

    def _repr_html_(self) -> str:
        """The line, the verdict and a table of layers, without measuring anything."""
        known = self.__dict__
        measured = self.layers_unsimulated if known.get("layers_in_file") else self._reports(None, {})
        layers = known.get("layers", measured)
        quality: Verdict | None = known.get("quality")
        return str(drawn_by("cells").result_cell(repr(self), layers, () if quality is None else quality.lines()))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the error of every layer, measured and predicted, coloured by bits; return the matplotlib axes.

        `ax` are the axes to draw on, by default those of a new figure. Needs matplotlib.
        """
        title = f"{Path(self.net.source).name}: {', '.join(bits_said(self.plan))}"
        return drawn_by("plots").plot_layers(self.layers_unsimulated, title, ax)

    def to_frame(self) -> DataFrame:
        """The reports on all layers as a pandas data frame, by the name of the layer. Needs pandas."""
        return drawn_by("frames").layers_frame(self.layers)

    def report(self, *, name: str = "quantized") -> Page:
        """The report on this result, as `qgraph quantize --report` writes it: a notebook shows it, `save` writes it."""
        page: Page = drawn_by("cells").page_of(self, name)
        return page

    @cached_property
    def layers(self) -> tuple[LayerReport, ...]:
        """A report on every layer with its errors: predicted, simulated alone, and measured in the file."""
        return self._reports(self.samples)

    @cached_property
    def layers_unsimulated(self) -> tuple[LayerReport, ...]:
        """The same without simulated errors, which take longest, if the file was measured."""
        return self._reports(None if self.layers_in_file else self.samples)

    def _reports(self, samples: Dataset | None, in_file: Mapping[str, InFile] | None = None) -> tuple[LayerReport, ...]:
        measured = self.layers_in_file if in_file is None else in_file
        return layer_reports(
            GraphView(self.net), self.plan, self.observed, samples, in_file=measured, threads=self.threads
        )

    @cached_property
    def layers_in_file(self) -> Mapping[str, InFile]:
        """The measured error of every layer's result in the file, by layer; empty where nothing is measured."""
        if self.trial is None or self.trial.samples is None:
            return {}
        view, samples = GraphView(self.net), self.trial.samples
        return layers_in_file(view, self.plan, self.model, samples, threads=self.threads, progress=self.trial.progress)

    def warnings(self) -> list[str]:
        """Warnings about tensors whose values on held-out samples leave the calibrated ranges."""
        if self.trial is None or self.trial.samples is None or self.trial.basis != "held-out" or self.observed is None:
            return []
        return beyond(self.layers_in_file.values(), self.observed, self.trial.samples)

    @cached_property
    def quality(self) -> Verdict | None:
        """The verdict on the file that `save` writes, against the float model; None where nothing is measured."""
        return None if self.trial is None else self.trial.judge(self.model, threads=self.threads)

    @cached_property
    def model(self) -> ir.Model:
        """The quantized model, as onnx-ir."""
        return lower(self.net, self.plan, format=self.format)

    def whatif(self, *changes: str, measure: bool = False) -> WhatIf:
        """What other bits for some layers would change, as predicted from the statistics of this result.

        Changes are words such as `stem/conv:weights=3` or `layer2.*:activations=6`. With `measure`, both files also run
        on the samples of this result, those that judge it where some were held out.
        """
        from qgraph.jobs.whatif import compared, judged

        samples = self.samples if measure else None
        found = compared(self.net, self.plan, changes, self.observed, samples, threads=self.threads)
        if not measure:
            return found
        trial = self.trial or Trial(reference=self.net, samples=samples, basis="calibration" if samples else "none")
        return judged(found, self.net, self.plan, trial, threads=self.threads)

    def with_plan(self, plan: QuantPlan) -> Result:
        """The result of another plan for the same network, such as one that `whatif` or a program made.

        Raises:
            PlanError: The plan does not fit the network.
        """
        plan.check_model(self.net.digest, self.net.source)
        return replace(self, plan=checked(plan, GraphView(self.net)), given_up=None, allocation=None, others=())

    @property
    def plan_file(self) -> str:
        """The plan as JSON, with the verdict on the file made from it, and what made it."""
        return self.described_plan().to_json()

    def described_plan(self, *, command: str | None = None) -> QuantPlan:
        """The plan with the verdict on its file, and with what made it: version, command and preprocessing."""
        made: dict[str, Any] = {"qgraph": __version__} | ({} if command is None else {"command": command})
        reading = None if self.samples is None else self.samples.preprocessing
        if reading is not None and (reading.mean or reading.std):
            made["preprocessing"] = {"mean": list(reading.mean), "std": list(reading.std)}
        return replace(self.plan, quality=None if self.quality is None else self.quality.to_dict(), made=made)

    @cached_property
    def nbytes(self) -> int:
        """The size of the file that `save` writes, in bytes."""
        return int(ir.to_proto(self.model).ByteSize())

    def save(self, path: str | Path) -> int:
        """Write the model, whole or not at all, and return its size in bytes.

        Example:
            >>> from importlib.resources import files
            >>> import qgraph
            >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
            >>> result = qgraph.quantize(network, activations=None, measure=False)
            >>> result.save("digits.w8.onnx") < network.stat().st_size / 3
            True
            >>> result.to_dict(output="digits.w8.onnx")["data"]
            'none'
        """
        return save(self.model, path, source=self.net.source)

    def to_proto(self) -> onnx.ModelProto:
        """The quantized model as an `onnx.ModelProto`, equal to the file that `save` writes.

        Raises:
            ModelError: Its weights do not fit in one protobuf of 2 GB.

        Example:
            >>> from importlib.resources import files
            >>> import onnx, qgraph
            >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
            >>> proto = qgraph.quantize(onnx.load(network), activations=None, measure=False).to_proto()
            >>> onnx.checker.check_model(proto)
        """
        return to_proto(self.model)

    def to_dict(self, *, output: str | None = None, nbytes: int | None = None) -> dict[str, Any]:
        """What `qgraph quantize --json` prints."""
        return {
            "output": output,
            "bytes": self.nbytes if nbytes is None else nbytes,
            "float_bytes": self.net.nbytes,
            "weight_bytes": sum(layer.weight_bytes for layer in self.layers),
            "data": self.data,
            "seconds": self.seconds,
            "layers": [
                {
                    "name": layer.name,
                    "op": layer.op,
                    "weight_bits": layer.weight_bits,
                    "activation_bits": layer.activation_bits,
                    "runs": layer.runs,
                    "predicted_sqnr_db": layer.predicted_sqnr_db,
                    "simulated_sqnr_db": layer.simulated_sqnr_db,
                    "measured_sqnr_db": layer.measured_sqnr_db,
                    "prior_rejected": layer.prior_rejected,
                }
                for layer in self.layers
            ],
            "kept_float": [{"name": k.name, "why": k.why, "bytes": k.bytes} for k in self.plan.kept_float],
            "max_drop": self._drop(),
            "others": list(self.others),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "guard": None if self.given_up is None else self.given_up.to_dict(),
        }

    def _drop(self) -> dict[str, Any] | None:
        """What the task lost, with `max_drop`."""
        drop = None if self.allocation is None else self.allocation.drop
        return None if drop is None else asdict(drop)
