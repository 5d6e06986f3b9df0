"""Distil data (ZeroQ, section III-A, Eq. 3): inputs that excite a network as its training data did."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import ModelError, UsageError
from qgraph.gradient import GradientError
from qgraph.gradient.adam import Adam
from qgraph.methods.zeroq.config import DistillConfig as DistillConfig
from qgraph.methods.zeroq.objective import Arrays, Objective, has_batch_norms, input_shapes, objective, step_bytes
from qgraph.methods.zeroq.rates import rate_after
from qgraph.methods.zeroq.settling import Settling
from qgraph.methods.zeroq.spectrum import natural_noise
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import normalise
from qgraph.running.executor import LOCAL, SentWithoutCaches, open_executor
from qgraph.running.store import Piece, Store, open_store
from qgraph.running.threads import keeps_threads
from qgraph.samples import layout
from qgraph.samples.preprocessing import Preprocessing

OnStep = Callable[[int, int, float], None]
AT_ONCE = 2  # batches

_KEEP = (
    "to keep BN, export from torch with training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, "
    "dynamo=False"
)
FOLDED = f"BatchNormalization is folded away: distilling from statistics estimated for the folded layers; {_KEEP}"
NOISE = f"no BatchNormalization to distil from, kept or folded: using noise with the spectrum of images; {_KEEP}"


def affordable(
    config: DistillConfig,
    model: Model,
    count: int,
    shapes: Mapping[str, Sequence[int]] | None,
    batch_axes: Mapping[str, int] | None,
) -> int:
    """How many samples can be optimised at once, of a job that distils `count`."""
    each = step_bytes(model, batch=min(config.batch, count), shapes=shapes, batch_axes=batch_axes)
    return max(config.memory // max(each, 1), 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distilled:
    """Distilled inputs by name, with the loss at every step.

    `losses` has one row per batch and one column per step, NaN for steps that a batch did not need. `layers` counts the
    BatchNormalizations that were matched; if there were none, `note` says what was done instead.
    """

    inputs: Mapping[str, NDArray[np.float32]]
    losses: NDArray[np.float64]
    layers: int
    seconds: float
    note: str = ""


@keeps_threads
def distill(
    model: ModelLike,
    *,
    count: int = 64,
    config: DistillConfig | None = None,
    seed: int = 0,
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
    resume: str | os.PathLike[str] | None = None,
    executor: str = LOCAL,
    preprocessing: Preprocessing | None = None,
    on_step: OnStep | None = None,
) -> Distilled:
    """Distil `count` samples from the BatchNormalization statistics of `model`.

    Every batch starts from its own noise, drawn from `seed` and the number of the batch, and is optimised on its own;
    batches run in parallel threads, or on a cluster. The same seed gives the same data wherever they run.

    Args:
        model: a model with BatchNormalization. If it was folded away, its statistics are estimated; if that is not
            possible either, the result is noise with a natural spectrum. The `note` of the result says so.
        count: how many samples.
        config: hyper-parameters.
        seed: for the noise.
        threads: how many to use; by default all cores.
        shapes: the shape of a batch, by input, where the model leaves sizes open.
        batch_axes: the axis of an input along which samples run, where it cannot be told from the sizes.
        resume: a folder for checkpoints; the same job continues from what it finds there.
        executor: where batches run: `local` or `dask:ADDRESS`; on a cluster, checkpoints are of whole batches.
        preprocessing: the mean and std of images in 0..1: what passes their ends is cut off.
        on_step: called with the steps done, the steps in total and the loss of a batch.

    Raises:
        DataError: an input is not floating point, or its size is unknown.
        StoreError: `resume` holds another job.
        UsageError: `count` is not positive.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> from qgraph.methods.zeroq.config import DistillConfig
        >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
        >>> qgraph.distill(network, count=4, config=DistillConfig(steps=2)).inputs["input"].shape
        (4, 1, 8, 8)
    """
    config = config or DistillConfig()
    if count < 1:
        raise UsageError(f"need at least one sample to distil, not {count}")
    began = time.perf_counter()
    loaded = load(model)
    kept = has_batch_norms(loaded)
    config = config if kept else config.for_folded()
    most = affordable(config, loaded, count, shapes, batch_axes)
    size = max(min(config.batch, count, most // AT_ONCE), 1)
    axes = layout.batch_axes(loaded.input_values(), batch_axes or {})
    found = input_shapes(loaded, batch=size, shapes=shapes, batch_axes=batch_axes)
    together = min((found[name][axis] for name, axis in axes.items() if axis is not None), default=1)
    numbers = range(-(-count // together))
    cores = threads or qmath.get_threads()
    workers = min(cores, len(numbers), AT_ONCE)
    source = _Source(model=loaded, batch=size, shapes=shapes, axes=batch_axes, config=config, seed=seed)
    pixels = preprocessing if config.pixels else None
    try:
        goal = source.goal(max(cores // workers, 1))
    except (GradientError, ModelError):
        if kept:
            raise
        whole_shapes = {n: tuple(count if i == axes[n] else d for i, d in enumerate(s)) for n, s in found.items()}
        noise = _as_pixels(natural_noise(whole_shapes, seed=seed), pixels)
        seconds = time.perf_counter() - began
        return Distilled(inputs=noise, losses=np.empty((0, 0)), layers=0, seconds=seconds, note=NOISE)
    whole = normalise(loaded, fold_bn=False)
    with open_store(resume, "distillation", model=whole, configuration=config, seed=seed, shapes=goal.shapes) as store:
        report = _Reporter(on_step, len(numbers) * config.steps)
        job = _Job(goal=goal, config=config, seed=seed, store=store, report=report)
        here = executor == LOCAL
        results = job.run_all(numbers, workers) if here else job.run_elsewhere(numbers, source, executor)
    inputs = {name: _together([one.batch[name] for one in results], axes[name], count) for name in goal.shapes}
    return Distilled(
        inputs=_as_pixels(inputs, pixels),
        losses=_rows([one.losses for one in results]),
        layers=goal.layers,
        seconds=time.perf_counter() - began,
        note="" if kept else FOLDED,
    )


def _as_pixels(
    inputs: Mapping[str, NDArray[np.float32]], preprocessing: Preprocessing | None
) -> Mapping[str, NDArray[np.float32]]:
    """The inputs with what no pixel can be cut off, where that is known.

    Only in the end: while the samples are optimised, it would keep them from their statistics.
    """
    limits = {} if preprocessing is None else {name: preprocessing.limits(x.shape) for name, x in inputs.items()}
    return {name: np.clip(x, *ends) if (ends := limits.get(name)) else x for name, x in inputs.items()}


def _rows(losses: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The losses of every batch as a row, filled up with NaN."""
    longest = max(map(len, losses))
    return np.array([[*row, *[np.nan] * (longest - len(row))] for row in losses])


@dataclass(slots=True)
class _Reporter:
    """Counts the steps of all batches."""

    on_step: OnStep | None
    total: int
    done: int = 0
    lock: Lock = field(default_factory=Lock)

    def __call__(self, steps: int, loss: float) -> None:
        with self.lock:
            self.done += steps
            if self.on_step is not None:
                self.on_step(self.done, self.total, loss)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ended:
    """A batch, its losses, and all that its next step would depend on."""

    batch: Arrays
    losses: list[float]
    piece: Piece


@dataclass(frozen=True, eq=False, kw_only=True)
class _Source(SentWithoutCaches):
    """What all batches follow from; a worker builds the gradients from it, once."""

    model: Model
    batch: int
    shapes: Mapping[str, Sequence[int]] | None
    axes: Mapping[str, int] | None
    config: DistillConfig
    seed: int

    def goal(self, threads: int) -> Objective:
        """What every batch minimises, computed on so many threads."""
        return objective(
            self.model,
            batch=self.batch,
            per=self.config.per,
            threads=threads,
            shapes=self.shapes,
            batch_axes=self.axes,
            builder=self.config.builder,
        )

    @cached_property
    def job(self) -> _Job:
        """The job as a worker runs it."""
        return _Job(goal=self.goal(1), config=self.config, seed=self.seed)


def _run_there(source: _Source, task: tuple[int, Piece | None]) -> _Ended:
    return source.job.run(*task)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all batches share; on a worker of a cluster there is no store."""

    goal: Objective
    config: DistillConfig
    seed: int
    store: Store | None = None
    report: Callable[[int, float], None] = lambda steps, loss: None
    stop: Event = field(default_factory=Event)

    def run_all(self, numbers: Sequence[int], workers: int) -> list[_Ended]:
        """The batches and their losses, optimised in parallel threads."""
        with ThreadPoolExecutor(workers) as pool:
            try:
                return list(pool.map(lambda number: self.run(number, self._kept(number)), numbers))
            except BaseException:  # an interrupt must not wait for batches that nobody will use
                self.stop.set()
                raise

    def run_elsewhere(self, numbers: Sequence[int], source: _Source, executor: str) -> list[_Ended]:
        """The same on the workers of a cluster."""
        done: dict[int, _Ended] = {}
        tasks = [(number, self._kept(number)) for number in numbers]
        with open_executor(executor) as pool:
            for index, ended in pool.run(_run_there, source, tasks):
                done[index] = ended
                if self.store is not None:
                    self.store.put_all({f"batch {numbers[index]}": ended.piece})
                self.report(self.config.steps, ended.losses[-1])
        return [done[index] for index in range(len(tasks))]

    def _kept(self, number: int) -> Piece | None:
        return None if self.store is None else self.store.get(f"batch {number}")

    def run(self, number: int, kept: Piece | None) -> _Ended:
        """Optimise batch `number` to the end, from its checkpoint if there is one."""
        batch, optimisers, losses, settling = self._start(number) if kept is None else self._continued(kept)
        if losses:
            self.report(len(losses), losses[-1])
        while len(losses) < self.config.steps and not settling.done and not self.stop.is_set():
            step = self.goal(batch)
            rate = rate_after(losses, self.config)
            losses.append(step.loss)
            for name, x in batch.items():
                optimisers[name].update(x, step.gradients[name], rate, len(losses))
                np.clip(x, -self.config.bound, self.config.bound, out=x)
            settling.see(step.mean, step.std)
            ended = settling.done or len(losses) == self.config.steps
            if (
                self.store is not None
                and self.store.is_kept
                and (ended or len(losses) % self.config.checkpoint_every == 0)
            ):
                self.store.put_all({f"batch {number}": _piece(batch, optimisers, losses, settling)})
            self.report(1, step.loss)
        if settling.done:
            self.report(self.config.steps - len(losses), losses[-1])
        return _Ended(batch=batch, losses=losses, piece=_piece(batch, optimisers, losses, settling))

    def _continued(self, kept: Piece) -> tuple[Arrays, dict[str, Adam], list[float], Settling]:
        batch = {name: kept.arrays[f"x {name}"] for name in self.goal.shapes}
        optimisers = self._optimisers(batch)
        for name, adam in optimisers.items():
            adam.state = {kind: kept.arrays[f"{kind} {name}"] for kind in adam.state}
        return batch, optimisers, kept.content["losses"], Settling.restored(self.config.settled, kept.arrays)

    def _optimisers(self, batch: Arrays) -> dict[str, Adam]:
        return {name: Adam(shape=x.shape) for name, x in batch.items()}

    def _start(self, number: int) -> tuple[Arrays, dict[str, Adam], list[float], Settling]:
        c, shapes = self.config, self.goal.shapes
        rng = np.random.default_rng([self.seed, number])
        if c.start == "natural":
            batch = natural_noise(shapes, seed=[self.seed, number])
        elif c.start == "gaussian":
            batch = {n: rng.standard_normal(shape, np.float32) for n, shape in shapes.items()}
        else:
            batch = {n: rng.uniform(-c.width, c.width, shape).astype(np.float32) for n, shape in shapes.items()}
        return batch, self._optimisers(batch), [], Settling(tolerance=c.settled)


def _piece(batch: Arrays, optimisers: Mapping[str, Adam], losses: Sequence[float], settling: Settling) -> Piece:
    arrays = {f"x {name}": x for name, x in batch.items()} | settling.state
    for name, adam in optimisers.items():
        arrays |= {f"{kind} {name}": state for kind, state in adam.state.items()}
    return Piece(content={"losses": list(losses)}, arrays=arrays)


def _together(batches: Sequence[NDArray[np.float32]], axis: int | None, count: int) -> NDArray[np.float32]:
    """The first `count` samples of all batches; one batch's values where all samples share them."""
    return batches[0] if axis is None else np.concatenate(batches, axis).take(range(count), axis)
