"""The contents of a report: a float model and quantized forms of it, measured on the same samples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qgraph.assess.evaluate import Evaluation
from qgraph.assess.verdict import Verdict
from qgraph.methods.zeroq.allocate import Allocation
from qgraph.plan.plan import KeptFloat
from qgraph.report.alternatives import Alternative
from qgraph.report.ranges import Operand
from qgraph.running.here import Here


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer of one variant, with its errors in dB.

    The predicted and simulated errors are those of the layer alone. The measured and accumulated ones are those of the
    file and include all layers before: measured after the grid of the layer's result, accumulated before it.
    """

    name: str
    op: str
    weight_count: int
    weight_bits: int | None = None
    activation_bits: int | None = None
    weight_bytes: int | None = None
    predicted_sqnr_db: float | None = None
    simulated_sqnr_db: float | None = None
    measured_sqnr_db: float | None = None
    accumulated_sqnr_db: float | None = None
    integer: bool | None = None
    """Whether onnxruntime runs it on integers; None where that could not be seen."""
    why_float: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One quantized form of the network; `latency` is relative to the float model."""

    name: str
    nbytes: int
    layers: tuple[LayerRow, ...]
    kept_float: tuple[KeptFloat, ...] = ()
    quality: Evaluation | None = None
    latency: float | None = None
    operands: tuple[Operand, ...] = ()
    """What the layers with the largest errors read."""
    alternatives: tuple[Alternative, ...] = ()
    """What other bits would do, for some layers of a plan."""

    @property
    def mean_weight_bits(self) -> float | None:
        """The average bits per weight, without layers in floating point."""
        quantized = [(r.weight_count, r.weight_bits) for r in self.layers if r.weight_bits is not None]
        count = sum(n for n, _ in quantized)
        return sum(n * bits for n, bits in quantized) / count if count else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """Everything on the page; `data` says what it was measured on, `distilled` are the samples if they were made."""

    source: str
    digest: str
    nbytes: int
    data: str
    count: int
    variants: tuple[Variant, ...]
    made: Here
    command: str = ""
    quality: Evaluation | None = None
    distilled: NDArray[Any] | None = None
    verdict: Verdict | None = None
    """The verdict on the written file, if the report is about one job."""
    allocation: Allocation | None = None
    """How bits were chosen, if they are mixed."""

    @property
    def float_top1(self) -> float | None:
        """The accuracy of the float model in percent; None without labels."""
        return None if self.quality is None else self.quality.top1

    def to_dict(self) -> dict[str, Any]:
        """What `qgraph report --json` prints."""
        return {
            "model": self.source,
            "bytes": self.nbytes,
            "data": self.data,
            "count": self.count,
            "command": self.command,
            "made": dataclasses.asdict(self.made),
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "top1": self.float_top1,
            "variants": [
                {
                    "name": v.name,
                    "bytes": v.nbytes,
                    "latency": v.latency,
                    "quality": None if v.quality is None else v.quality.to_dict(),
                    "layers": [dataclasses.asdict(layer) for layer in v.layers],
                    "kept_float": [dataclasses.asdict(k) for k in v.kept_float],
                }
                for v in self.variants
            ],
        }
