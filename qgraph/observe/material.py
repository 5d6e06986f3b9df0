"""What a method makes a plan from, and whether it has what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.model import Model
from qgraph.plan import registry
from qgraph.plan.recipe import Recipe
from qgraph.running.job import Job
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset


@dataclass(frozen=True, eq=False, kw_only=True)
class Material:
    """The network, the recipe, and what is known about the network's activations.

    `samples` are None if nothing needs to be run through the network, or if a file of statistics replaces them.
    `format` is the format that the plan is for. `variants`: whether the method may try variants of itself on the
    samples.
    """

    view: GraphView
    recipe: Recipe
    observed: Observations | None = None
    samples: Dataset | None = None
    format: str = "qdq"
    variants: bool = False
    job: Job = field(default_factory=Job)
    known: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What a method made of a part of the network: plans of one job that share the part, share the work."""

    @property
    def net(self) -> Model:
        """The network in normal form."""
        return self.view.model

    def need_samples(self, why: str) -> Dataset:
        """The samples; raises `UsageError` if there are none, as with a calibration file."""
        if self.samples is None:
            raise UsageError(f"{why}: pass {option('data')}, a calibration file is not enough")
        return self.samples


def check_needs(method: str, loaded: Model, samples: Dataset | None) -> None:
    """Raise `UsageError` if the model or the samples lack what the method needs."""
    needs = frozenset(need for step in registry.chain(method) for need in step.needs)
    if "labels" in needs and (samples is None or samples.labels is None):
        raise UsageError(f"method '{method}' learns from labels: pass {option('data')} with labels")
    if "batch norm" in needs and not any(node.op_type == "BatchNormalization" for node in loaded.graph):
        raise UsageError(
            f"method '{method}' reads BatchNormalization, but {loaded.source} has none: most exporters fold it away"
        )
