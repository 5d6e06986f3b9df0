"""What the result of a job is judged by: the user's float model and held-out samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from qgraph.assess.metric import Metric
from qgraph.assess.verdict import Basis, Verdict, measure
from qgraph.onnxfile.model import Model
from qgraph.running.progress import SILENT, Progress
from qgraph.samples.dataset import Dataset
from qgraph.samples.split import Split


def tell(messages: Iterable[str]) -> None:
    """Issue each message as a warning."""
    for message in messages:
        warnings.warn(message, stacklevel=3)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """The float model to compare with, and the samples to compare on; `basis` says what they are."""

    reference: Model
    samples: Dataset | None
    basis: Basis
    metric: Metric | None = None
    progress: Progress = SILENT

    @classmethod
    def of(
        cls,
        reference: Model,
        apart: Split | None,
        *,
        given: bool,
        metric: Metric | None = None,
        progress: Progress = SILENT,
    ) -> Trial:
        """A trial on the samples that a job held out; `given` says whether the user gave them."""
        basis: Basis = "none" if apart is None else "distilled" if not given else "calibration"
        if apart is not None and apart.apart and given:
            basis = "held-out"
        samples = None if apart is None else apart.held_out
        return cls(reference=reference, samples=samples, basis=basis, metric=metric, progress=progress)

    def judge(self, quantized: ir.Model, *, threads: int | None = None) -> Verdict:
        """The verdict on `quantized`, run as it will be written."""
        return measure(
            self.reference,
            quantized,
            self.samples,
            basis=self.basis,
            metric=self.metric,
            threads=threads,
            progress=self.progress,
        )
