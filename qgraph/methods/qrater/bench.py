"""Measure the candidates of one layer in a single session, fed with their weight, operand and bias."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.methods.qrater.config import Objective
from qgraph.methods.qrater.cut import BIAS, OPERAND, SOURCE, WEIGHT, Cut, part
from qgraph.methods.qrater.objective import Outputs, Scorer, choose_scorer
from qgraph.methods.qrater.tensors import Tensors
from qgraph.onnxfile.model import Model
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, WeightQuant
from qgraph.plan.staircase import activation_table, on_grid
from qgraph.running.executor import Executor
from qgraph.running.sessions import Session, in_parallel
from qgraph.samples.dataset import Batch, Dataset

BATCH = 32  # samples per run, so that activations stay in the cache of a core
CHUNK = 4  # batches per job


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to quantize a layer: the grids of its weight and operand (None: floating point), and its bias shift."""

    weight: WeightQuant
    operand: ActivationQuant | None = None
    shift: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What a search measures on: batches (with their feeds in `tensors`, by input name) and float outputs."""

    batches: tuple[Batch, ...]
    reference: tuple[Outputs, ...]
    scorer: Scorer
    digest: str

    @cached_property
    def counts(self) -> tuple[int, ...]:
        return tuple(batch.count for batch in self.batches)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def batches_for(self, samples: int) -> int:
        """How many batches it takes to hold this many samples; at most all."""
        return min(int(np.searchsorted(np.cumsum(self.counts), samples)) + 1, len(self.counts))

    def scores(self, batch: int, outputs: Outputs) -> NDArray[np.float32]:
        """The scores of the samples of a batch, for the network's outputs."""
        frame = self.batches[batch]
        real = [frame.real(output) for output in outputs]
        return self.scorer(real, self.reference[batch], frame.labels).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One candidate to measure on some batches."""

    weight: NDArray[np.float32]
    operand: ActivationQuant | None
    bias: NDArray[np.float32]
    batches: tuple[int, ...]


class Stand:
    """What a job needs, here or on another machine: the suffix of the network and the tensors it reads."""

    def __init__(
        self, suffix: ir.Model, frontier: tuple[str, ...], source: str, samples: Samples, tensors: Tensors
    ) -> None:
        self.suffix, self.frontier, self.source = suffix, frontier, source
        self.samples, self.tensors = samples, tensors
        self._lock = Lock()
        self._session: Session | None = None

    def __reduce__(self) -> tuple[Callable[..., Stand], tuple[Any, ...]]:
        """Pickle the network as ONNX: objects that refer to one another along it would end in a RecursionError."""
        needed = self.tensors.only({*self.frontier, self.source})
        suffix = Model(ir_model=self.suffix, source="", nbytes=0)
        return _unpickled, (suffix, self.frontier, self.source, self.samples, needed)

    def open(self) -> Session:
        with self._lock:
            if self._session is None:
                self._session = Session(self.suffix, threads=1)
            return self._session

    def operand(self, batch: int, grid: ActivationQuant | None) -> NDArray[np.float32]:
        source = self.tensors.get(self.source, batch)
        return source if grid is None else on_grid(source, grid)


def _unpickled(suffix: Model, *others: Any) -> Stand:
    return Stand(suffix.ir_model, *others)


def measure(stand: Stand, job: Job) -> list[NDArray[np.float32]]:
    """The scores of one candidate on the samples of some batches, batch by batch."""
    session, samples = stand.open(), stand.samples
    scores = []
    for batch in job.batches:
        feeds = {name: stand.tensors.get(name, batch) for name in stand.frontier}
        fed = {OPERAND: stand.operand(batch, job.operand), WEIGHT: job.weight, BIAS: job.bias}
        outputs = session.run_list(feeds | {name: fed[name] for name in fed if name in session.input_names})
        scores.append(samples.scores(batch, outputs))
    return scores


class Bench:
    """Candidates of one layer, measured on an executor."""

    def __init__(self, layer: Layer, state: str, parts: Cut, stand: Stand, executor: Executor) -> None:
        self.layer, self.state, self.parts, self.stand, self.executor = layer, state, parts, stand, executor
        self.array = layer.weight_array()

    def key(self, candidate: Candidate) -> str:
        """A name for what a candidate computes, given the state of the other layers: equal keys mean equal scores."""
        digest = hashlib.sha256(self.state.encode())
        digest.update(weights.quantized(self.array, candidate.weight).tobytes())
        digest.update(np.asarray(candidate.shift, np.float64).tobytes())
        digest.update(self._steps(candidate.operand).encode())
        return digest.hexdigest()[:24]

    def jobs(self, candidate: Candidate, batches: Sequence[int]) -> list[Job]:
        """Jobs of a few batches each that measure the candidate."""
        weight = weights.quantized(self.array, candidate.weight)
        bias = self.parts.bias_for(candidate.shift)
        return [
            Job(weight=weight, operand=candidate.operand, bias=bias, batches=tuple(batches[i : i + CHUNK]))
            for i in range(0, len(batches), CHUNK)
        ]

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
        """Yields (number of the job, scores) as jobs complete."""
        return self.executor.run(measure, self.stand, jobs)

    def operand_limit(self, grid: ActivationQuant | None) -> float:
        """The limit of the operand's grid at gamma_c = 1, averaged over batches (Algorithm 1, ActClip).

        That is the largest magnitude or, on grids where zero is not central, the side that needs larger steps, in units
        of the upper side's codes.
        """
        batches = [self._source(b) for b in range(len(self.stand.samples.counts))]
        if grid is None or grid.symmetric or not grid.zero_point or grid.zero_point == grid.qmax:
            return float(np.mean([np.abs(x).max(initial=0.0) for x in batches]))
        below = (grid.qmax - grid.zero_point) / grid.zero_point
        return float(np.mean([max(x.max(initial=0.0), -x.min(initial=0.0) * below) for x in batches]))

    @cached_property
    def _alone(self) -> Session:
        return Session(self.parts.alone, threads=1)

    def mean_output(self, candidate: Candidate, batches: int) -> NDArray[np.float64]:
        """E[y'] per output channel over the first batches, without the layer's bias (Eq. 7)."""
        session = self._alone
        weight = weights.quantized(self.array, candidate.weight)
        axis = self.layer.result_axis
        samples = self.stand.samples

        def sums(batch: int) -> NDArray[np.float64]:
            operand = self.stand.operand(batch, candidate.operand)
            return channel_sums(session.run_list({OPERAND: operand, WEIGHT: weight})[0], axis, samples.batches[batch])

        total: NDArray[np.float64] = np.sum(list(in_parallel(sums, range(batches))), axis=0)
        return total / sum(samples.counts[:batches])

    @cached_property
    def _range(self) -> tuple[float, float]:
        batches = [self._source(b) for b in range(len(self.stand.samples.counts))]
        return min(float(x.min()) for x in batches), max(float(x.max()) for x in batches)

    def _source(self, batch: int) -> NDArray[np.float32]:
        return self.stand.samples.batches[batch].real(self.stand.tensors.get(self.stand.source, batch))

    def _steps(self, grid: ActivationQuant | None) -> str:
        """A text that identifies the staircase of an operand's grid over the values that occur."""
        if grid is None:
            return "float"
        table = activation_table(grid)
        if table is None:
            factors = f" {grid.channel_scale} {grid.channel_qmax}" if grid.channel_scale else ""
            return f"nearest {grid.bits} {grid.scale!r} {grid.zero_point} {grid.qmax} {grid.offset!r}{factors}"
        low, high = self._range
        edges = table.thresholds(float(np.float32(grid.scale)), dtype=np.float32)
        first, last = np.searchsorted(edges, (low, high), side="right")
        return f"{grid.scale!r} {edges[first:last].tolist()} {table.codes[first : last + 1].tolist()}"


def channel_sums(result: NDArray[Any], axis: int, batch: Batch) -> NDArray[np.float64]:
    """The means per channel over the samples of a batch, times their number."""
    others = tuple(i for i in range(result.ndim) if i != axis % result.ndim)
    return batch.count * np.asarray(batch.real(result).mean(axis=others, dtype=np.float64))


def collect(dataset: Dataset, model: Model, tensors: Tensors, objective: Objective | None) -> Samples:
    """Read the samples, run the float network on them, and choose a scorer."""
    session = Session(model.ir_model, threads=1)
    digest = hashlib.sha256()
    batches = list(dataset.batches(BATCH))
    reference: list[Outputs] = list(
        in_parallel(lambda batch: [batch.real(output) for output in session.run_list(batch.feeds)], batches)
    )
    for index, batch in enumerate(batches):
        for name, array in sorted(batch.feeds.items()):
            tensors.put(name, index, array)
            digest.update(np.ascontiguousarray(array).tobytes())
        if batch.labels is not None:
            digest.update(np.ascontiguousarray(batch.labels).tobytes())
    labels = [batch.labels for batch in batches]
    every = None if any(part is None for part in labels) else np.concatenate([x for x in labels if x is not None])
    return Samples(
        batches=tuple(replace(batch, feeds={}) for batch in batches),
        reference=tuple(reference),
        scorer=choose_scorer(objective, reference, every, counts=[batch.count for batch in batches]),
        digest=digest.hexdigest(),
    )


def advance(cut: Cut, tensors: Tensors, batches: int) -> None:
    """Compute the tensors that the suffix and the layer read; forget all others except the inputs."""
    wanted = {*cut.frontier, cut.source}
    inputs = {str(v.name) for v in cut.prefix.graph.inputs}
    tensors.keep(tensors.names() - {SOURCE})
    missing = sorted(wanted - tensors.names())
    if missing:
        net = part(cut.prefix, inputs=tensors.names(), outputs=missing)
        session = Session(net, threads=1)

        def compute(batch: int) -> list[NDArray[Any]]:
            return session.run_list({name: tensors.get(name, batch) for name in session.input_names})

        for batch, arrays in enumerate(in_parallel(compute, range(batches))):
            for name, array in zip(missing, arrays, strict=True):
                tensors.put(name, batch, array)
    tensors.keep(wanted | inputs)
