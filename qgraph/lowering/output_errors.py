"""How far the outputs of plans are from the float network's, to choose among plans."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from qgraph.lowering.lower import lower
from qgraph.observe.distance import Reference
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset

MOST = 64  # samples


def output_errors(net: Model, samples: Dataset, *, format: str) -> Callable[[QuantPlan], float]:
    """A function from a plan to the squared errors of its outputs on samples, each relative to its power, added up.

    Squared errors, because the divergence of a confident classifier depends on a few samples.
    """
    reference = Reference.of(net, samples, samples=MOST).of_squares()

    @cache
    def errors(plan: QuantPlan) -> float:
        return reference.distance(Session(lower(net, plan, format=format, packed=False)))

    return errors
