"""The training loop: plan (+ weights) -> plan (+ weights)."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import DataError, ModelError
from qgraph.gradient.step import TrainingStep
from qgraph.methods.lsqplus.batches import Feed, open_feed
from qgraph.methods.lsqplus.config import LsqPlusConfig, Schedule
from qgraph.methods.lsqplus.holdout import Judgement, is_kept, judge
from qgraph.methods.lsqplus.loss import one_hot, targets_of
from qgraph.methods.lsqplus.optimise import Optimiser, cosine, decayed, optimiser
from qgraph.methods.lsqplus.parameters import absorb
from qgraph.methods.lsqplus.state import State
from qgraph.methods.lsqplus.statistics import with_statistics
from qgraph.methods.lsqplus.step import training_graph
from qgraph.methods.lsqplus.trained import Trained
from qgraph.methods.lsqplus.weight_quantizer import Floats
from qgraph.observe.distance import are_probabilities
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import MAX_BITS, QuantPlan
from qgraph.running.job import Job
from qgraph.running.progress import Progress
from qgraph.running.sessions import Session
from qgraph.running.store import Store, open_store
from qgraph.running.wording import option
from qgraph.samples.dataset import Batch, Dataset
from qgraph.samples.layout import Axes

CHECKPOINT_EVERY = 100  # steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The trained float network, the plan for it, and the judgement of the start and of every epoch."""

    net: Model
    plan: QuantPlan
    schedule: Schedule
    epochs: tuple[Judgement, ...]
    best_epoch: int


def train(
    net: Model,
    plan: QuantPlan,
    data: Dataset,
    *,
    config: LsqPlusConfig | None = None,
    batch_norms: Collection[str] = (),
    job: Job | None = None,
) -> Training:
    """Learn the scales and offsets of `plan` and the weights of `net` from samples, with or without labels.

    With `keep_bn`, the tensors `batch_norms` are normalised by the batch during training (see `batch_norm`).

    The same arguments give the same bytes on any number of threads. The returned plan has no grids for tensors that no
    layer reads (see `absorb`).

    Raises:
        GradientError: an operator cannot be differentiated; raised before the first step.
        DataError: labels are not classes of the model, or there are too few samples.
        StoreError: `resume` holds the checkpoints of another training.
        ModelError: training diverged.
    """
    chosen, job = config or LsqPlusConfig(), job or Job()
    feed = open_feed(data, chosen, seed=job.seed)
    schedule = chosen.schedule(bits=_fewest_bits(plan), steps=feed.steps)
    trained = absorb(net, plan, chosen, batch_norms if chosen.keep_bn else ())
    first = replace(data, limit=min(data.count, chosen.calibration))
    trained = with_statistics(trained, first, threads=job.threads)
    run = _Run(trained, net, feed, schedule, job.threads or qmath.get_threads())
    decisive = {"model": net, "plan": plan.to_json(), "settings": chosen, "seed": job.seed, "samples": data}
    with open_store(job.resume, "training", **decisive) as store:
        state = run.go(store, job.progress)
    if state.best_epoch == 0:
        warnings.warn(
            f"{len(state.epochs) - 1} epochs of training did not improve on the start, which is kept: try a lower "
            f"{option('config.rate')} (now {schedule.rate:g})",
            stacklevel=2,
        )
    trained_net, learned = trained.release(state.best)
    epochs = tuple(Judgement(**values) for values in state.epochs)
    return Training(net=trained_net, plan=learned, schedule=schedule, epochs=epochs, best_epoch=state.best_epoch)


class _Run:
    """What all steps share."""

    def __init__(self, trained: Trained, net: Model, feed: Feed, schedule: Schedule, threads: int) -> None:
        self.trained, self.net, self.feed, self.schedule, self.threads = trained, net, feed, schedule, threads
        self.config = feed.config
        self.targets = targets_of(trained.net.ir_model, net.source)
        self.labelled = feed.data.labels is not None
        if self.labelled and self.targets.logits is None:
            raise DataError(
                f"the data have labels, but {net.source} has no output with one score per class, as far as the file "
                f"tells: leave the labels out, and training follows the float model's outputs"
            )
        if feed.data.labels is not None:
            one_hot(feed.data.labels, self.targets.classes)  # fail before the work begins
        fixed = _fixed_batch(net, feed.data.layouts)
        most = feed.data.batch or min(self.config.shard, self.config.batch)
        self.shard = most if fixed is None else fixed
        if self.config.batch % self.shard:
            raise DataError(f"a batch of {self.config.batch} cannot be split into shards of {self.shard} samples")
        self.teacher = Session(net.ir_model, outputs=self.targets.watched, threads=1)
        if self.targets.logits is not None:
            first = next(feed.data.batches(self.shard))
            scores = first.real(self.teacher.run_list(first.feeds)[0])
            self.targets = replace(self.targets, probabilities=are_probabilities([scores]))
        self.graph = training_graph(
            trained, self.targets, self.config, batch=self.shard, labelled=self.labelled, axes=feed.data.layouts
        )
        self.weights = trained.of_kind("weight")
        self.rate = self._rates()
        self.factor = trained.per_value("factor")

    @property
    def total(self) -> int:
        return self.feed.steps * self.schedule.epochs

    def go(self, store: Store, progress: Progress) -> State:
        """Run the remaining epochs."""
        state = State.restored(store) or self._fresh()
        moving = self._optimiser()
        moving.state = state.optimiser
        with (
            TrainingStep(self.graph, teacher=self.teacher, threads=self.threads) as step,
            progress.stage("training", self.total) as advance,
        ):
            advance(state.step, "")
            while state.step < self.total:
                loss = self._advance(step, state, moving)
                note = f"epoch {(state.step - 1) // self.feed.steps + 1}, loss {loss:.4f}"
                if state.step % self.feed.steps == 0:
                    self._close_epoch(state)
                    note += f", {Judgement(**state.epochs[state.best_epoch])}"
                due = state.step % CHECKPOINT_EVERY == 0 or state.step % self.feed.steps == 0
                if store.is_kept and due:
                    state.save(store)
                advance(1, note)
        return state

    def _fresh(self) -> State:
        state = State(
            values=self.trained.start.copy(),
            optimiser=self._optimiser().state,
            best=self.trained.start.copy(),
            losses=[],
            epochs=[],
        )
        state.epochs.append(asdict(self._judge(state)))
        return state

    def _advance(self, step: TrainingStep, state: State, moving: Optimiser) -> float:
        epoch, index = divmod(state.step, self.feed.steps)
        shards = self._shards(self.feed.batch(epoch, index))
        loss, found = step(self.trained.feeds(state.values), shards)
        loss /= self.config.batch
        gradient = self.trained.gradient(state.values, found)
        gradient *= self.factor / np.float32(self.config.batch)
        if not np.isfinite(loss) or not np.isfinite(gradient).all():
            raise ModelError(
                f"training diverged in epoch {epoch + 1}, step {index + 1}: the loss is {loss}; lower "
                f"{option('config.rate')} (now {self.schedule.rate:g}) or {option('config.scale_rate')} (now "
                f"{self.schedule.scale_rate:g})"
            )
        rate = self.rate * np.float32(cosine(state.step, self.total, warmup=self.config.warmup))
        decayed(state.values, rate, self.config.weight_decay, self.weights)
        moving.update(state.values, gradient, rate, state.step + 1)
        self.trained.constrain(state.values)
        self.trained.track(state.values, found)
        state.step += 1
        state.losses.append(loss)
        return loss

    def _close_epoch(self, state: State) -> None:
        judged = self._judge(state)
        state.losses = []
        state.epochs.append(asdict(judged))
        if is_kept([Judgement(**epoch) for epoch in state.epochs]):
            state.best, state.best_epoch = state.values.copy(), len(state.epochs) - 1

    def _judge(self, state: State) -> Judgement:
        loss = float(np.mean(state.losses)) if state.losses else None
        net, plan = self.trained.release(state.values)
        return judge(net, plan, self.teacher, self.targets, self.feed, loss=loss, threads=self.threads)

    def _shards(self, batch: Batch) -> list[Mapping[str, NDArray[Any]]]:
        whole = dict(batch.feeds)
        if batch.labels is not None and self.config.label_weight > 0:
            whole["labels"] = one_hot(batch.labels, self.targets.classes)
        starts = range(0, self.config.batch, self.shard)
        axes = {name: self.feed.data.layouts.get(name, 0) for name in whole}
        return [{n: _part(x, axes[n], start, start + self.shard) for n, x in whole.items()} for start in starts]

    def _optimiser(self) -> Optimiser:
        return optimiser(self.config.optimiser, self.trained.size, momentum=self.config.momentum)

    def _rates(self) -> Floats:
        """The initial rate of every value."""
        grids = self.trained.of_kind("scale", "weight_scale", "offset")
        rate = np.where(grids, np.float32(self.schedule.scale_rate), np.float32(self.schedule.rate))
        if self.config.optimiser == "adam":
            rate = rate * self.trained.per_value("unit")
        return rate.astype(np.float32)


def _fixed_batch(net: Model, axes: Axes) -> int | None:
    """The batch size that the model fixes; `axes` are those of inputs whose batch does not run along axis 0."""
    for value in net.input_values():
        axis, shape = axes.get(str(value.name), 0), value.shape
        if axis is not None and shape is not None and len(shape) and isinstance(size := shape[axis], int):
            return size
    return None


def _part(array: NDArray[Any], axis: int | None, start: int, stop: int) -> NDArray[Any]:
    """Some samples of a batch, which runs along an axis; the whole array where all samples share it."""
    return array if axis is None else array[(slice(None),) * axis + (slice(start, stop),)]


def _fewest_bits(plan: QuantPlan) -> int:
    grids = [layer.weight for layer in plan.layers] + list(plan.activations)
    return min((grid.bits for grid in grids), default=MAX_BITS)
