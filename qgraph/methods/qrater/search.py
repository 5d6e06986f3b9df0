"""Q-Rater's Algorithm 1: choose clips, roundings and bias shifts layer by layer, by measuring the task.

For each layer in order: WeightQuant (clip, then round), ActQuant (clip, then round), BiasCorr. Earlier layers are
frozen as found; in the first pass, later layers are still in floating point. A clip is measured with the rounding that
the layer has at that point, at first to nearest.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.methods.qrater.assembly import Assembly, from_json
from qgraph.methods.qrater.bench import Bench, Candidate, Job, Samples, Stand, advance, collect
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.cost import Cost, own_shares, shares
from qgraph.methods.qrater.cut import cut
from qgraph.methods.qrater.means import FloatMeans
from qgraph.methods.qrater.race import Outcome, Rules, Scores, race
from qgraph.methods.qrater.space import Stage, can_clip, can_round, clip_stage, round_stage, weight_limits
from qgraph.methods.qrater.tensors import Tensors
from qgraph.methods.qrater.whole import mean_objective
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan
from qgraph.running.executor import Executor
from qgraph.running.files import write_atomically
from qgraph.running.progress import SILENT, Advance, Progress
from qgraph.running.store import Piece, Store, open_store
from qgraph.samples.dataset import Dataset

if TYPE_CHECKING:
    from qgraph.methods.qrater.bayes import Optimizer

BEST = "best.plan.json"
STAGE = "search"  # in the store, with the scores of candidates and the choices as pieces
CORRECTED_ON = 128  # samples from which the shift of a candidate is computed


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The result of a search: the plan, the mean objective after each layer (`history`), and the cost."""

    plan: QuantPlan
    objective: str
    history: tuple[tuple[str, float], ...]
    cost: Cost
    samples: int
    constant: bool
    """Whether every candidate scored the same."""
    start: float = 0.0
    """The mean objective of the starting plan, on the same samples."""


def search(
    base: QuantPlan,
    model: Model,
    data: Dataset,
    *,
    executor: Executor,
    config: SearchConfig | None = None,
    folder: Path | None = None,
    progress: Progress = SILENT,
) -> Found:
    """Find better grids for the layers of `base` and their operands by measuring the task on `data`.

    `base` says which layers and tensors are quantized, with how many bits and on what kind of grid. A `folder` keeps
    every evaluation, so that an interrupted search can continue, and the best plan so far.
    Raises `DataError` if the objective cannot be measured, and `StoreError` if the folder holds another search.
    """
    config = config or SearchConfig()
    with closing(Tensors(config.cache_bytes)) as tensors:
        samples = collect(data, model, tensors, config.objective)
        decisive = {
            "model": model.digest,
            "plan": hashlib.sha256(base.to_json().encode()).hexdigest(),
            "data": samples.digest,
            "objective": samples.scorer.objective,
            "config": config.identity(),
        }
        with open_store(folder, STAGE, **decisive) as store:
            run = _Search(base, model, samples, tensors, config, store, executor)
            asked = [config.evaluations(activations=run.assembly.has_operand(q.name)) for q in run.assembly.searched]
            total = config.passes * sum(asked)
            grid = max(len(config.clips), len(config.roundings))  # the candidates of one grid run apart
            with progress.stage("searching", total, pieces=grid) as bar:
                return run.run(bar, folder)


class _Search:
    def __init__(
        self,
        base: QuantPlan,
        model: Model,
        samples: Samples,
        tensors: Tensors,
        config: SearchConfig,
        store: Store,
        executor: Executor,
    ) -> None:
        self.base, self.model, self.samples, self.tensors = base, model, samples, tensors
        self.config, self.store, self.executor = config, store, executor
        self.view = GraphView(model)
        self.assembly = Assembly(base, self.view)
        self.shares, self.own_shares = shares(self.view), own_shares(self.view)
        self.cost = Cost()
        self.history: list[tuple[str, float]] = []
        self.varied = False
        objective = samples.scorer.objective
        self.rules = Rules(
            confidence=config.confidence,
            tolerance=config.tolerance,
            unit=1.0 if objective in ("task", "accuracy") else 0.0,
            keep=config.keep,
        )
        self.blocks = self._blocks()
        self.float_means = FloatMeans(model, self.view, samples, tensors)

    def run(self, bar: Advance, folder: Path | None) -> Found:
        start = mean_objective(self.base, self.model, self.samples, self.tensors)
        for turn in range(self.config.passes):
            for quant in self.assembly.searched:
                best = _Layer(self, self.view.by_name[quant.name], turn, bar).run()
                self.history.append((quant.name, best))
                if folder is not None:
                    write_atomically(folder / BEST, self.assembly.plan().to_json().encode())
        return Found(
            plan=self.assembly.plan(),
            objective=self.samples.scorer.objective,
            history=tuple(self.history),
            cost=self.cost,
            samples=self.samples.total,
            constant=not self.varied,
            start=start,
        )

    def _blocks(self) -> list[int]:
        """The numbers of batches after which the candidates of a race are tested."""
        every = len(self.samples.counts)
        if not self.config.race:
            return [every]
        blocks: list[int] = []
        wanted = self.config.first
        while not blocks or blocks[-1] < every:
            blocks.append(self.samples.batches_for(wanted))
            wanted *= 2
        return list(dict.fromkeys(blocks))

    def order(self, stage: str) -> list[int]:
        """The order of batches in the races of a stage; it varies, as the same first ones would decide too much."""
        if not self.config.race:
            return list(range(len(self.samples.counts)))
        seed = int.from_bytes(hashlib.sha256(f"{self.config.seed} {stage}".encode()).digest()[:8])
        return [int(i) for i in np.random.default_rng(seed).permutation(len(self.samples.counts))]

    def progress(self) -> str:
        """The progress of the search, for display."""
        last = self.history[-1][1] if self.history else None
        objective = self.samples.scorer.objective
        now = (
            ""
            if last is None
            else f"{objective} {100 * last:.2f}%, "
            if objective in ("task", "accuracy")
            else f"{-last:.4f}, "
        )
        return (
            f"{now}{self.cost.run:,} of {self.cost.asked:,} measured, {self.cost.saving(self.samples.total):.0f}x fewer"
        )


class _Layer:
    """The stages of Algorithm 1 for one layer."""

    def __init__(self, owner: _Search, layer: Layer, turn: int, bar: Advance) -> None:
        self.owner, self.layer, self.turn, self.bar = owner, layer, turn, bar
        self.config = owner.config
        self.seen: set[tuple[str, int]] = set()
        self.spent = Cost()
        self._bench: Bench | None = None

    @property
    def bench(self) -> Bench:
        """Measures candidates; only made when one must be measured, as a stage in the store needs none."""
        if self._bench is None:
            owner = self.owner
            plan = owner.assembly.without(self.layer.name)
            parts = cut(owner.model, plan, self.layer.name)
            if not self.config.cache:
                owner.tensors.keep({str(v.name) for v in owner.model.input_values()})
            advance(parts, owner.tensors, len(owner.samples.counts))
            stand = Stand(parts.suffix, parts.frontier, parts.source, owner.samples, owner.tensors)
            state = hashlib.sha256(f"{plan.to_json()} {self.layer.name}".encode()).hexdigest()
            self._bench = Bench(self.layer, state, parts, stand, owner.executor)
        return self._bench

    def run(self) -> float:
        owner, config = self.owner, self.config
        now = owner.assembly.current(self.layer.name)
        grid = now.operand
        owns = owner.assembly.has_operand(self.layer.name)
        if owns and self.turn == 0:
            now = dataclasses.replace(now, operand=None)
        if "clip" in config.ingredients and can_clip(now.weight):
            now = self._stage("weight clip", self._clips, "weight", now)
        if "round" in config.ingredients and can_round(now.weight, config):
            now = self._stage("weight round", self._roundings, "weight", now)
        if grid is not None and owns:
            now = dataclasses.replace(now, operand=now.operand or grid)
            if "clip" in config.ingredients and can_clip(grid):
                now = self._stage("operand clip", self._clips, "operand", now)
            if "round" in config.ingredients and can_round(grid, config):
                now = self._stage("operand round", self._roundings, "operand", now)
        if "bias" in config.ingredients:
            now = self._stage("bias", self._shifts, "", now)
        mean = self._mean(now)
        if self.turn and mean < owner.history[-1][1]:
            return owner.history[-1][1]  # what looked better on the samples of the races is worse on all samples
        owner.assembly.freeze(self.layer.name, now)
        return mean

    def _mean(self, now: Candidate) -> float:
        """The mean objective of the layer as found, on all samples; reuses what the races measured."""
        owner, key = self.owner, f"{self.turn}/{self.layer.name}/mean"
        kept = self._chosen(key)
        if kept is None:
            self.spent = Cost()
            scores = self._measure([(self.bench.key(now), now)], range(len(owner.samples.counts)))[0]
            kept = {"mean": float(scores.astype(np.float64).mean()), "cost": self.spent.to_dict()}
            owner.store.put(f"choice {key}", kept)
        owner.cost.add(Cost(**kept["cost"]))
        return float(kept["mean"])

    def _clips(self, side: str, now: Candidate) -> Stage:
        if side == "weight":
            return clip_stage(side, now, weight_limits(self.layer.weight_array(), now.weight), self.config)
        return clip_stage(side, now, np.array([self.bench.operand_limit(now.operand)]), self.config)

    def _roundings(self, side: str, now: Candidate) -> Stage:
        return round_stage(side, now, self.config)

    def _shifts(self, side: str, now: Candidate) -> Stage:
        """The shift of Eq. 7, none, or the current one; as in Algorithm 1, the first of equals wins."""
        shifts = list(dict.fromkeys([self._expected_shift(now, self.owner.samples.total), (), now.shift]))
        return Stage(
            name="bias",
            at=lambda point: dataclasses.replace(now, shift=shifts[int(point["shift"])]),
            grid=tuple({"shift": float(i)} for i in range(len(shifts))),
            bounds={},
            current=None,
        )

    def _expected_shift(self, candidate: Candidate, samples: int) -> tuple[float, ...]:
        """E[y] - E[y'] per output channel over the first samples (Eq. 7); () if it cannot be measured."""
        batches = self.owner.samples.batches_for(samples)
        expected = self.owner.float_means.without_bias(self.layer, batches)
        if expected is None:
            return ()
        count = sum(self.owner.samples.counts[:batches])
        self.spent.forwards += count * self.owner.own_shares[self.layer.name]
        return _floats(expected - self.bench.mean_output(candidate, batches))

    def _chosen(self, key: str) -> dict[str, Any] | None:
        """The choice made at some point of the search, if it is in the store."""
        piece = self.owner.store.get(f"choice {key}")
        return None if piece is None else dict(piece.content)

    def _stage(self, name: str, make: Callable[[str, Candidate], Stage], side: str, now: Candidate) -> Candidate:
        """The best candidate of a stage, from the store or by a race."""
        owner, key = self.owner, f"{self.turn}/{self.layer.name}/{name}"
        kept = self._chosen(key)
        if kept is None:
            self.spent = Cost()
            chosen, outcome = self._search_stage(make(side, now), owner.order(key))
            varied = len(set(outcome.means)) > 1
            kept = {
                "plan": owner.assembly.to_json(self.layer.name, chosen),
                "varied": varied,
                "cost": self.spent.to_dict(),
            }
            owner.store.put(f"choice {key}", kept)
        owner.cost.add(Cost(**kept["cost"]))
        owner.varied |= bool(kept["varied"])
        self.bar(int(kept["cost"]["asked"]), f"{self.layer.name} {name}, {owner.progress()}")
        return from_json(kept["plan"])

    def _search_stage(self, stage: Stage, order: Sequence[int]) -> tuple[Candidate, Outcome]:
        """Search the grid, then (with `bo`) points proposed by a Gaussian process, each against the best so far."""
        config, started = self.config, self._started(stage)
        candidates = [*started, *(self._corrected(stage.at(point), stage) for point in stage.grid)]
        outcome = self._race(candidates, order, defended=len(started[:1]))
        best, further = candidates[outcome.winner], config.further if stage.bounds and config.search == "bo" else 0
        self.spent.asked += stage.asked + further
        if not further or not outcome.decided:
            return best, outcome
        from qgraph.methods.qrater.bayes import Optimizer  # takes long to import

        optimizer = Optimizer(stage.bounds, seed=config.seed)
        for point, mean in zip(stage.grid, outcome.means[len(started) :], strict=True):
            optimizer.tell(point, mean)
        return self._optimise(stage, optimizer, best, outcome, order)

    def _optimise(
        self, stage: Stage, optimizer: Optimizer, best: Candidate, outcome: Outcome, order: Sequence[int]
    ) -> tuple[Candidate, Outcome]:
        """Try points of Bayesian optimisation until none are left, or `patience` of them in a row are no better."""
        in_vain = 0
        for _ in range(self.config.further):
            point = optimizer.ask() if in_vain < self.config.patience else None
            if point is None:
                break
            challenger = self._corrected(stage.at(point), stage)
            trial = self._race([best, challenger], order, defended=1, least=1)
            optimizer.tell(point, trial.means[1])
            in_vain += 1
            if trial.winner == 1:
                best, outcome, in_vain = challenger, dataclasses.replace(trial, means=(*outcome.means, *trial.means)), 0
        return best, outcome

    def _started(self, stage: Stage) -> list[Candidate]:
        """The current candidate, with its present shift and with the shift of Eq. 7."""
        return [] if stage.current is None else [stage.current, self._corrected(stage.current, stage)]

    def _corrected(self, candidate: Candidate, stage: Stage) -> Candidate:
        """The candidate with its own shift, if the search includes shifts."""
        if not self.config.corrected or "bias" not in self.config.ingredients or not stage.bounds:
            return candidate
        return dataclasses.replace(candidate, shift=self._expected_shift(candidate, CORRECTED_ON))

    def _race(
        self, candidates: Sequence[Candidate], order: Sequence[int], *, defended: int = 0, least: int | None = None
    ) -> Outcome:
        """The best of these candidates; the first `defended` of them only drop out if the test says so.

        With `least` 1, a challenger of the defended ones must lead after every round.
        """
        keys = [self.bench.key(candidate) for candidate in candidates]
        unique = list(dict.fromkeys(keys))
        numbers = [keys.index(key) for key in unique]
        self.spent.run += len(set(unique) - {key for key, _ in self.seen})

        def measured(chosen: Sequence[int], first: int, end: int) -> list[Scores]:
            wanted = [(unique[c], candidates[numbers[c]]) for c in chosen]
            if not self.config.reuse:
                names = {key for key, _ in wanted}
                again = [(i, key) for i, key in enumerate(keys) if key in names and i not in numbers]
                wanted += [(f"{key}#{i}", candidates[i]) for i, key in again]
            return self._measure(wanted, order[first:end])[: len(chosen)]

        rules = self.owner.rules if least is None else dataclasses.replace(self.owner.rules, least=least)
        outcome = race(len(unique), self.owner.blocks, measured, rules, defended=range(defended))
        means = tuple(outcome.means[unique.index(key)] for key in keys)
        return dataclasses.replace(outcome, winner=numbers[outcome.winner], means=means)

    def _measure(self, chosen: Sequence[tuple[str, Candidate]], batches: Sequence[int]) -> list[Scores]:
        """The scores of candidates on some batches; what is in the store is not measured again."""
        owner, bench = self.owner, self.bench
        found: dict[tuple[str, int], NDArray[np.float32]] = {}
        jobs: list[tuple[str, Job]] = []
        for key, candidate in chosen:
            missing = []
            for batch in batches:
                if (key, batch) not in self.seen:
                    self.seen.add((key, batch))
                    self.spent.samples += owner.samples.counts[batch]
                    self.spent.forwards += owner.samples.counts[batch] * owner.shares[self.layer.name]
                kept = owner.store.get(f"scores {key} {batch}")
                if kept is None:
                    missing.append(batch)
                else:
                    found[key, batch] = kept.arrays["scores"]
            jobs += [(key, job) for job in bench.jobs(candidate, missing)]
        for index, scores in bench.run([job for _, job in jobs]):
            key, job = jobs[index]
            measured = dict(zip(job.batches, scores, strict=True))
            pieces = {f"scores {key} {batch}": Piece(arrays={"scores": values}) for batch, values in measured.items()}
            owner.store.put_all(pieces)
            found |= {(key, batch): values for batch, values in measured.items()}
        return [np.concatenate([found[key, batch] for batch in batches]) for key, _ in chosen]


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values.astype(np.float32))
