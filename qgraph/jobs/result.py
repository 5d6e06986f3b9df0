"""What quantizing a model gives: a plan, the graph that it makes, and what became of every layer."""

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
from qgraph.methods.guard.guard import Concession
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.write import save
from qgraph.plan.plan import QuantPlan
from qgraph.samples.dataset import Dataset

if TYPE_CHECKING:
    from qgraph.methods.zeroq.allocate import Allocation


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The concessions of the guard, and what the file was worth before them."""

    target_db: float
    concessions: tuple[Concession, ...]
    before: Verdict

    def lines(self, after: Verdict) -> tuple[str, ...]:
        """What gave way, and what that costs."""
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
    """A quantized model: its plan, its graph, and what each stage took."""

    net: Model
    plan: QuantPlan
    format: str
    data: str
    seconds: dict[str, float]
    observed: Observations | None = None
    samples: Dataset | None = None
    threads: int | None = None
    trial: Trial | None = None
    """What `quality` is measured on; None where it is not."""
    allocation: Allocation | None = None
    """Sensitivities, frontier and choice, where bits were mixed."""
    given_up: GivenUp | None = None
    """What gave way so that the outputs hold their target; None where nothing had to."""

    @cached_property
    def layers(self) -> tuple[LayerReport, ...]:
        """What became of every layer, with its errors: predicted, simulated alone, and measured in the file."""
        view = GraphView(self.net)
        return layer_reports(
            view, self.plan, self.observed, self.samples, in_file=self.layers_in_file, threads=self.threads
        )

    @cached_property
    def layers_in_file(self) -> Mapping[str, InFile]:
        """What was measured of every layer's result in the file, by layer; nothing where it was not to be measured."""
        if self.trial is None or self.trial.samples is None:
            return {}
        view, samples = GraphView(self.net), self.trial.samples
        return layers_in_file(view, self.plan, self.model, samples, threads=self.threads, progress=self.trial.progress)

    def warnings(self) -> list[str]:
        """What samples that took no part say against the ranges that the others gave."""
        if self.trial is None or self.trial.samples is None or self.trial.basis != "held-out" or self.observed is None:
            return []
        return beyond(self.layers_in_file.values(), self.observed, self.trial.samples)

    @cached_property
    def quality(self) -> Verdict | None:
        """What the file that `save` writes is worth beside the float model; None where it was not to be measured."""
        return None if self.trial is None else self.trial.judge(self.model, threads=self.threads)

    @cached_property
    def model(self) -> ir.Model:
        """The quantized model, as onnx-ir."""
        return lower(self.net, self.plan, format=self.format)

    @property
    def plan_file(self) -> str:
        """The plan as JSON, with the quality of what was made of it."""
        return replace(self.plan, quality=None if self.quality is None else self.quality.to_dict()).to_json()

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the file that `save` writes."""
        return int(ir.to_proto(self.model).ByteSize())

    def save(self, path: str | Path) -> int:
        """Write the model, whole or not at all; returns its size in bytes."""
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
        """What the task lost, where it was the budget."""
        drop = None if self.allocation is None else self.allocation.drop
        return None if drop is None else asdict(drop)
