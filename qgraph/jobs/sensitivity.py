"""Measure how much every layer matters at each width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgraph.jobs.prepare import gather
from qgraph.methods.zeroq.sensitivity import Sensitivity
from qgraph.onnxfile.model import ModelLike
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.store import hold
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike


@keeps_threads
def measure_sensitivity(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    method: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: str | Path | None = None,
    executor: str = "local",
    progress: Progress = SILENT,
    **overrides: Any,
) -> Sensitivity:
    """Measure how far the outputs move when one layer alone is quantized, at each of `bits` (ZeroQ, Eq. 2).

    The arguments are those of `quantize`; without data, samples are distilled from the model. With `activations`
    "mixed", every tensor that layers read is measured as well.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> table = qgraph.measure_sensitivity(network, samples, limit=16, bits=(2, 8))
        >>> all(two > eight for two, eight in (row.measured for row in table.layers))
        True
    """
    job = Job(seed=seed, threads=threads, resume=resume, executor=executor, progress=progress)
    overrides = {"activations": None, **overrides, "weights": "mixed"}
    with hold(resume):
        given = gather(model, data, job, method=method, **overrides)
        mixer = given.mixer()
        return mixer.sensitivity(mixer.menus())
