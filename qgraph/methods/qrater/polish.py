"""Run a search from a starting plan with the settings of a job."""

from __future__ import annotations

from pathlib import Path

from qgraph.errors import QGraphError
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.search import Found, search
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan
from qgraph.running.executor import open_executor
from qgraph.running.job import Job
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset


class ConstantObjective(QGraphError):
    """Every candidate of every layer scored the same, so that there was nothing to search by."""


def polish(base: QuantPlan, net: Model, samples: Dataset, *, config: SearchConfig, job: Job) -> Found:
    """Search from a starting plan; raises `ConstantObjective` if all candidates score the same."""
    folder = None if job.resume is None else Path(job.resume)
    with open_executor(job.executor, workers=job.threads) as pool:
        found = search(base, net, samples, executor=pool, config=config, folder=folder, progress=job.progress)
    if found.constant:
        raise ConstantObjective(
            f"the objective '{found.objective}' was the same for every candidate on {found.samples} samples, so there "
            f"is nothing to search by: choose another {option('config.objective')} (mse needs no "
            f"labels), more samples or fewer bits"
        )
    return found
