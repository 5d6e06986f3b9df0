"""Measure how far the outputs of a plan's model are above a target, on a few samples."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.assess.float_constants import is_linear
from qgraph.assess.output_quality import OutputQuality, OutputTally
from qgraph.assess.verify import first_run
from qgraph.errors import ModelError
from qgraph.jobs.prepare import Gathered
from qgraph.lowering.lower import lower
from qgraph.observe.statistics import RUN_BYTES, batch_within
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Batch
from qmath.late import LateModule

special = LateModule("scipy.special")
SAME_CLASS = 0.98
DOUBT = 0.05  # too many classes changed if this count has a smaller probability at a true rate of 2 %
MOST = 64
TOGETHER = 8
SURE = 0.95  # confidence that a plan is better, or an output no worse
RUN_SECONDS = 1.0  # of processor time, for a run over all samples; slower networks get fewer samples
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
    return bool(changed and special.bdtrc(changed - 1, output.decisions, 1 - SAME_CLASS) < DOUBT)


def surely_positive(differences: NDArray[np.float64]) -> bool:
    """Whether the mean of paired differences is above zero by a one-sided t-test at 95 %; one pair proves nothing."""
    count = len(differences)
    if count < 2:
        return False
    error = differences.std(ddof=1) / np.sqrt(count)
    return bool(differences.mean() > special.stdtrit(count - 1, SURE) * error)


def _most(errors: NDArray[np.float64]) -> float:
    """The sum of errors that is not exceeded at 95 % confidence, where as many samples are drawn again."""
    count = len(errors)
    spread = errors.std(ddof=1) * np.sqrt(count) if count > 1 else 0.0
    return float(errors.sum() + special.stdtrit(max(count - 1, 1), SURE) * spread)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Measured:
    """The outputs of a plan, and the squared errors of each, sample by sample, relative to its signal."""

    outputs: tuple[OutputQuality, ...]
    noise: tuple[NDArray[np.float64], ...]


class PlanJudge:
    """Measures the margin of plans on their models with unpacked weights: the same numbers, sooner.

    It uses at most `MOST` of the calibration samples, evenly spread, and fewer if the network is slow. If their
    activations are small, they run together, so that weights are put on their grids once for `TOGETHER` samples.
    """

    def __init__(self, given: Gathered) -> None:
        self.given = given
        self.session = session = Session(given.net.ir_model, threads=given.job.threads)
        self.names = session.output_names
        self.linear = [is_linear(value) for value in given.net.graph.outputs]
        self.batches: list[Batch] = []
        self.expected: list[list[NDArray[Any]]] = []
        self._known: dict[QuantPlan, _Measured | None] = {}
        self._last: dict[QuantPlan, Session] = {}  # of one plan at most, shared with `in_batches`
        samples = given.need_samples("the guard measures on samples")
        began = time.process_time()
        spread = samples.choose(range(0, samples.count, -(-samples.count // MOST)))
        nbytes = RUN_BYTES if given.observed is None else given.observed.sample_bytes
        together = min(batch_within(RUN_BYTES, nbytes), TOGETHER)
        self.size = max(first_run(session, samples)[0], together)
        for batch in spread.batches(self.size):
            self.expected.append(session.run_list(batch.feeds))
            self.batches.append(batch)
            if time.process_time() - began > RUN_SECONDS:
                break

    def few(self, most: int) -> list[Batch]:
        """`most` of the samples, evenly spread, or one run where the model takes more at a time."""
        samples = self.given.need_samples("errors are measured on samples")
        count = samples.count
        return list(samples.choose(i * count // most for i in range(min(most, count))).batches(min(self.size, most)))

    def in_batches(self, size: int, *, most: int) -> PlanJudge | None:
        """The same on `most` batches of up to `size` samples; None where the model takes another size alone."""
        samples = self.given.need_samples("plans are measured on samples")
        if samples.batch is not None or samples.count < 2:
            return None
        return self._on(list(itertools.islice(samples.batches(size), most)))

    def held_out(self, size: int | None = None) -> PlanJudge | None:
        """The same on samples that calibrate nothing, `size` at a time; None where there are none."""
        trial = self.given.trial
        if not trial.samples or trial.basis != "held-out":
            return None
        return self._on(list(trial.samples.batches(size or self.size)))

    def _on(self, batches: list[Batch]) -> PlanJudge:
        other = copy.copy(self)
        other.batches, other._known = batches, {}
        other.expected = [self.session.run_list(batch.feeds) for batch in batches]
        return other

    def above(self, target: float) -> Callable[[QuantPlan], float]:
        """A function that measures how far the outputs of a plan are above a target, in dB."""
        return lambda plan: self.margin(plan, target)

    def margin(self, plan: QuantPlan, target: float) -> float:
        """How far the outputs of a plan are above the target, in dB; -1000 if its model does not run."""
        measured = self._measured(plan)
        return _HOPELESS if measured is None else margin(measured.outputs, target)

    def worst_db(self, plan: QuantPlan) -> float:
        """The SQNR of a plan's worst output in dB: infinite where all are exact, -1000 if its model does not run."""
        measured = self._measured(plan)
        if measured is None or any(output.problem for output in measured.outputs):
            return _HOPELESS
        return min((o.sqnr_db for o in measured.outputs if o.sqnr_db is not None), default=np.inf)

    def sure_db(self, plan: QuantPlan) -> float:
        """The SQNR that the worst output has at 95 % confidence, by how much the errors of samples differ."""
        measured = self._measured(plan)
        if measured is None or any(output.problem for output in measured.outputs):
            return _HOPELESS
        most = max((_most(rows) for rows in measured.noise), default=0.0)
        return float(-10 * np.log10(most)) if most else np.inf

    def noise(self, plan: QuantPlan) -> NDArray[np.float64]:
        """The errors of a plan at every output, as power relative to the output's own; infinite if it does not run."""
        measured = self._measured(plan)
        return np.array([np.inf] * len(self.names) if measured is None else [rows.sum() for rows in measured.noise])

    def clearly_better(self, plan: QuantPlan, other: QuantPlan) -> bool:
        """Whether the plan beats another beyond what chance in the choice of samples explains.

        The squared errors of the output that the other plan hurts most are compared sample by sample, in a one-sided
        paired t-test at 95 %. A few samples that decide the sum are not enough.
        """
        first, second = self._measured(plan), self._measured(other)
        if first is None or second is None:
            return first is not None
        worst = max(range(len(self.names)), key=lambda output: second.noise[output].sum())
        return surely_positive(second.noise[worst] - first.noise[worst])

    def _measured(self, plan: QuantPlan) -> _Measured | None:
        """How far the outputs of a plan are from the float model's, measured once; None if its model does not run."""
        if plan not in self._known:
            self._known[plan] = self._run(plan)
        return self._known[plan]

    def _run(self, plan: QuantPlan) -> _Measured | None:
        tallies = [OutputTally(n, linear=flat) for n, flat in zip(self.names, self.linear, strict=True)]
        noise: list[list[NDArray[np.float64]]] = [[] for _ in self.names]
        try:
            session = self._session(plan)
            for batch, want in zip(self.batches, self.expected, strict=True):
                have = session.run(batch.feeds)
                for tally, expected, rows in zip(tallies, want, noise, strict=True):
                    pair = batch.real(expected), batch.real(have[tally.name])
                    tally.take(*pair)
                    rows.append(_squared_errors(*pair, count=batch.count))
        except ModelError:
            return None
        return _Measured(
            outputs=tuple(tally.result() for tally in tallies),
            noise=tuple(np.concatenate(rows) / (t.signal or 1.0) for rows, t in zip(noise, tallies, strict=True)),
        )

    def _session(self, plan: QuantPlan) -> Session:
        if plan not in self._last:
            given = self.given
            self._last.clear()
            model = lower(given.net, plan, format=given.format, packed=False)
            self._last[plan] = Session(model, threads=given.job.threads)
        return self._last[plan]


def _squared_errors(want: NDArray[Any], have: NDArray[Any], *, count: int) -> NDArray[np.float64]:
    """The sum of squared errors of each of `count` samples, or of all together where they cannot be told apart."""
    if want.dtype.kind != "f" or want.shape != have.shape:
        return np.zeros(count)
    error = np.square(np.subtract(have, want, dtype=np.float64, where=np.isfinite(want), out=np.zeros(want.shape)))
    return (
        error.reshape(count, -1).sum(axis=1) if want.ndim and len(want) == count else error.sum(keepdims=True).ravel()
    )
