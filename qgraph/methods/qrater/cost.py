"""The cost of a search in image-forwards: one is the whole network on one sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.walk import descendants
from qgraph.graph.work import multiplications


@dataclass(slots=True, kw_only=True)
class Cost:
    """The counts so far; those of a stage are added when it is done.

    `asked` are the evaluations that Algorithm 1 makes, each with all samples through the whole network; `run` are the
    candidates that were measured at all. `samples` counts how often a sample went through a suffix of the network, and
    `forwards` is the same weighted by the suffix's share of the network's multiplications.
    """

    asked: int = 0
    run: int = 0
    samples: int = 0
    forwards: float = 0.0

    def add(self, other: Cost) -> None:
        self.asked += other.asked
        self.run += other.run
        self.samples += other.samples
        self.forwards += other.forwards

    def saving(self, total: int) -> float:
        """The image-forwards of Algorithm 1 on `total` samples, divided by those of the search."""
        return self.asked * total / self.forwards if self.forwards else float("inf")

    def to_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "run": self.run, "samples": self.samples, "forwards": self.forwards}


def shares(view: GraphView) -> dict[str, float]:
    """For every layer, the share of the network's multiplications in it and in everything that depends on it."""
    work = {layer.node: multiplications(layer) for layer in view.layers}
    total = sum(work.values()) or 1.0
    return {
        layer.name: sum(work[node] for node in _with_all_behind(layer) if node in work) / total for layer in view.layers
    }


def own_shares(view: GraphView) -> dict[str, float]:
    """For every layer, its own share of the network's multiplications."""
    work = {layer.name: multiplications(layer) for layer in view.layers}
    total = sum(work.values()) or 1.0
    return {name: own / total for name, own in work.items()}


def _with_all_behind(layer: Layer) -> dict[ir.Node, None]:
    return {layer.node: None} | descendants([layer.output])
