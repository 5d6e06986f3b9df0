"""What a method makes a plan of, and whether it has what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.model import Model
from qgraph.plan import registry
from qgraph.plan.recipe import Recipe
from qgraph.running.job import Job
from qgraph.samples.dataset import Dataset


@dataclass(frozen=True, eq=False, kw_only=True)
class Material:
    """The network, the recipe, and what is known of the network's activations.

    `samples` are None where nothing needs to flow through the network, or a file of statistics stands for them.
    `format` is what the plan is made for. `variants`: the method may try variants of itself on the samples.
    """

    view: GraphView
    recipe: Recipe
    observed: Observations | None = None
    samples: Dataset | None = None
    format: str = "qdq"
    variants: bool = False
    job: Job = field(default_factory=Job)

    @property
    def net(self) -> Model:
        """The network in normal form."""
        return self.view.model

    def need_samples(self, why: str) -> Dataset:
        """The samples; raises `UsageError` where there are none, as with a calibration file."""
        if self.samples is None:
            raise UsageError(f"{why}: pass --data, a calibration file is not enough")
        return self.samples


def check_needs(method: str, loaded: Model, samples: Dataset | None) -> None:
    """Raise `UsageError` where the model or the samples lack what the method needs of them."""
    needs = frozenset(need for step in registry.chain(method) for need in step.needs)
    if "labels" in needs and (samples is None or samples.labels is None):
        raise UsageError(f"method '{method}' learns from labels: pass --data with an array 'labels'")
    if "batch norm" in needs and not any(node.op_type == "BatchNormalization" for node in loaded.graph):
        raise UsageError(
            f"method '{method}' reads BatchNormalization, and {loaded.source} has none: most exporters fold it away"
        )
