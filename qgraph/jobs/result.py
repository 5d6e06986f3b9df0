"""The result of quantizing a model: its plan, its graph, and a report on every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from qgraph.onnxfile.write import save
from qgraph.plan.plan import QuantPlan
from qgraph.samples.dataset import Dataset
from qgraph.version import __version__

if TYPE_CHECKING:
    from qgraph.jobs.whatif import WhatIf
    from qgraph.methods.zeroq.allocate import Allocation


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The concessions of the guard, and the verdict on the file before them."""

    target_db: float
    concessions: tuple[Concession, ...]
    before: Verdict

    def lines(self, after: Verdict) -> tuple[str, ...]:
        """What was given up and what that costs, one line each."""
        share = (after.nbytes - self.before.nbytes) / max(self.before.float_nbytes, 1)
        cost = f"{share:+.1%} of the float model's bytes"
        if after.latency is not None and self.before.latency is not None:
            cost += f", latency {self.before.latency:.2f} -> {after.latency:.2f} of float's"
        head = f"guard: {len(self.concessions)} grids gave way for {self.target_db:g} dB ({cost})"
        return head, *(f"  {concession}" for concession in self.concessions)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target_db": self.target_db,
            "bytes_before": self.before.nbytes,
            "latency_before": self.before.latency,
            "concessions": [concession.to_dict() for concession in self.concessions],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A quantized model with its plan, its layers, its verdict, and the seconds of each stage.

    `net` is the normalised float network, `format` is `qdq` or `float`, and `data` is where the samples came from:
    `calibration`, `distilled` or `none`.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
        >>> result = qgraph.quantize(network, activations=None, weights=4, measure=False)
        >>> result.nbytes < 0.2 * result.net.nbytes
        True
        >>> result.plan.layer(result.layers[1].name).weight.bits
        4
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
    given_up: GivenUp | None = None
    """What the guard gave up so that the outputs meet their target; None if nothing."""

    @cached_property
    def layers(self) -> tuple[LayerReport, ...]:
        """A report on every layer with its errors: predicted, simulated alone, and measured in the file."""
        return self._reports(self.samples)

    @cached_property
    def layers_unsimulated(self) -> tuple[LayerReport, ...]:
        """The same without simulated errors, which take longest, if the file was measured."""
        return self._reports(None if self.layers_in_file else self.samples)

    def _reports(self, samples: Dataset | None) -> tuple[LayerReport, ...]:
        view = GraphView(self.net)
        return layer_reports(view, self.plan, self.observed, samples, in_file=self.layers_in_file, threads=self.threads)

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

    def whatif(self, *changes: str) -> WhatIf:
        """What other bits for some layers would change, as predicted from the statistics of this result.

        Changes are words such as `stem/conv:weights=3` or `layer2.*:activations=6`. See `qgraph.whatif` to measure them
        on samples.
        """
        from qgraph.jobs.whatif import compared

        return compared(self.net, self.plan, changes, self.observed, threads=self.threads)

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
            "quality": None if self.quality is None else self.quality.to_dict(),
            "guard": None if self.given_up is None else self.given_up.to_dict(),
        }

    def _drop(self) -> dict[str, Any] | None:
        """What the task lost, with `max_drop`."""
        drop = None if self.allocation is None else self.allocation.drop
        return None if drop is None else asdict(drop)
