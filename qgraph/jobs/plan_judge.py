"""By how many dB the outputs of a plan's model hold a target, on a few samples."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from qgraph.assess.float_constants import is_linear
from qgraph.assess.output_quality import OutputQuality, OutputTally
from qgraph.errors import ModelError
from qgraph.jobs.prepare import Gathered
from qgraph.lowering.lower import lower
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Batch

SAME_CLASS = 0.98
DOUBT = 0.05  # too many classes changed if this count has a smaller probability at a true rate of 2 %
RUN_SECONDS = 0.5  # a run over all samples may take this long; slower networks get fewer samples
_HOPELESS = -1000.0


def margin(outputs: Sequence[OutputQuality], target: float) -> float:
    """How far the worst output is above the target, in dB; negative where it misses.

    An output of class scores also misses where significantly more than the allowed 2 % of classes changed.
    """
    least = np.inf
    for output in outputs:
        if output.sqnr_db is not None:
            least = min(least, output.sqnr_db - target)
        elif output.problem:
            least = _HOPELESS
        if output.same_argmax is not None and _too_many_changed(output):
            least = min(least, 100 * (output.same_argmax - SAME_CLASS))
    return float(least)


def _too_many_changed(output: OutputQuality) -> bool:
    changed = round(output.decisions * (1 - (output.same_argmax or 0.0)))
    return bool(changed and stats.binom.sf(changed - 1, output.decisions, 1 - SAME_CLASS) < DOUBT)


class PlanJudge:
    """Measures the margin of a plan on its model with unpacked weights: the same numbers, sooner."""

    def __init__(self, given: Gathered, batches: Sequence[Batch], target: float) -> None:
        self.given, self.batches, self.target = given, batches, target
        session = Session(given.net.ir_model, threads=given.job.threads)
        self.names = session.output_names
        self.linear = [is_linear(value) for value in given.net.graph.outputs]
        self.expected = [session.run_list(batch.feeds) for batch in batches]

    def __call__(self, plan: QuantPlan) -> float:
        net = self.given.net
        tallies = [OutputTally(n, linear=flat) for n, flat in zip(self.names, self.linear, strict=True)]
        try:
            session = Session(lower(net, plan, format=self.given.format, packed=False), threads=self.given.job.threads)
            for batch, want in zip(self.batches, self.expected, strict=True):
                have = session.run(batch.feeds)
                for tally, expected in zip(tallies, want, strict=True):
                    tally.take(_real(batch, expected), _real(batch, have[tally.name]))
        except ModelError:
            return _HOPELESS
        return margin([tally.result() for tally in tallies], self.target)


def _real(batch: Batch, array: Any) -> Any:
    return batch.real(array) if isinstance(array, np.ndarray) else array


def few_samples(given: Gathered, most: int) -> list[Batch]:
    """At most `most` of the given samples, evenly spread; fewer where the network is slow."""
    samples = given.need_samples("the guard measures on samples")
    session = Session(given.net.ir_model, threads=given.job.threads)
    step = max(1, samples.count // most)
    chosen: list[Batch] = []
    began = time.perf_counter()
    for batch in itertools.islice(samples.batches(1), 0, None, step):
        session.run_list(batch.feeds)
        chosen.append(batch)
        if len(chosen) >= most or time.perf_counter() - began > RUN_SECONDS:
            break
    return chosen
