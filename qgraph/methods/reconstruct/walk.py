"""plan -> plan: block after block, the codes, grids and biases that bring its result near the float network's.

Each block is trained on what reaches it in the network quantized so far (BRECQ, Li et al., 2021): the roundings of its
weights (AdaRound, Nagel et al., 2020), the scales and zero points of its activations (LSQ+), and its biases, with
roundings of activations dropped at random (QDrop, Wei et al., 2022).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.gradient import GradientError
from qgraph.gradient.importance import counted, important_positions
from qgraph.graph.blocks import Block, blocks
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_non_negative
from qgraph.graph.walk import has_bodies
from qgraph.lowering.simulate import simulate
from qgraph.methods.reconstruct.adaround import AdaRoundWeight
from qgraph.methods.reconstruct.config import ReconstructConfig
from qgraph.methods.reconstruct.crops import croppable, cropped, margin
from qgraph.methods.reconstruct.graph import block_part, key, trainable, trained_grids, training_graph, trains_bias
from qgraph.methods.reconstruct.training import Samples, Variables, train_block
from qgraph.methods.reconstruct.variables import SoftWeight, TrainedGrid
from qgraph.onnxfile.edit import constant
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant
from qgraph.plan.saturation import never_saturates
from qgraph.running.job import Job
from qgraph.running.sessions import Session, in_parallel
from qgraph.running.store import Store, open_store
from qgraph.samples.dataset import Batch, Dataset

Arrays = dict[str, list[NDArray[Any]]]  # by tensor, one for each batch


def reconstruct_blocks(
    plan: QuantPlan,
    view: GraphView,
    data: Dataset,
    *,
    config: ReconstructConfig | None = None,
    sample_bytes: int = 0,
    job: Job | None = None,
) -> QuantPlan:
    """The plan with codes, activation grids and bias shifts learned block after block; labels are not needed.

    Errors count by the importance of their positions for the network's outputs (`qgraph.gradient.importance`);
    `sample_bytes` are those of all tensors of a sample, about. Blocks that no gradient passes keep what they have.
    The same arguments give the same bytes on any number of threads.
    """
    chosen, job = config or ReconstructConfig(), job or Job()
    spread = data.choose(range(0, data.count, -(-data.count // chosen.samples)))
    chosen = chosen.fitting(spread.count)
    walk = _Walk.begin(plan, view, list(spread.batches(chosen.shard)), chosen, job)
    leaving = [name for block in walk.blocks for name in block.writes]
    walk.important = important_positions(view, leaving, spread, sample_bytes=sample_bytes, job=job)
    decisive = {"model": view.model, "plan": plan.to_json(), "settings": chosen, "seed": job.seed, "samples": data}
    with (
        open_store(job.resume, "reconstruction", **decisive) as store,
        job.progress.stage("reconstruct", len(walk.blocks)) as advance,
    ):
        for index in range(len(walk.blocks)):
            advance(1, walk.step(index, store))
    return walk.plan


@dataclass(eq=False, kw_only=True)
class _Walk:
    """Where the walk through the blocks has come: the plan, and what enters the blocks to come."""

    plan: QuantPlan
    view: GraphView
    blocks: tuple[Block, ...]
    floats: Arrays
    quantized: Arrays
    graph: ir.Model
    config: ReconstructConfig
    job: Job
    important: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    @classmethod
    def begin(
        cls, plan: QuantPlan, view: GraphView, batches: Sequence[Batch], config: ReconstructConfig, job: Job
    ) -> _Walk:
        cut = blocks(view)
        grids = plan.operand_grids
        layers = [quant.name for quant in plan.layers if _is_trained(view.by_name[quant.name], quant, grids)]
        side = _side_values(view, cut, batches, job.threads)
        graph = trainable(view.model, plan, frozenset(layers))
        return cls(
            plan=plan,
            view=view,
            blocks=cut,
            floats=dict(side),
            quantized=dict(side),
            graph=graph,
            config=config,
            job=job,
        )

    def step(self, index: int, store: Store) -> str:
        """Reconstruct a block, and let the samples pass it; returns a note on the gain.

        What was learned stays only if it brings the block's results on the samples nearer to the float network's.
        """
        block = self.blocks[index]
        targets = _run(self.view.model.ir_model, block, self.floats, self.job.threads)
        counts = self._counts(targets)
        results, before = self._results(block), self.plan
        start = _error(results, targets, counts)
        note = f"{block.layers[-1]}: {start:.4f}"
        if self._learn(index, store, targets):
            learned = self._results(block)
            error = _error(learned, targets, counts)
            note += f" -> {error:.4f}"
            if error < start:
                results = learned
            else:
                self.plan = before
        later = {name for after in self.blocks[index + 1 :] for name in after.reads}
        for held, made in ((self.floats, targets), (self.quantized, results)):
            held.update(made)
            for name in [name for name in held if name not in later]:
                del held[name]
        return note

    def _counts(self, targets: Arrays) -> Arrays:
        """How much each position of what leaves a block counts, where that is known."""
        found = {name: [counted(self.important.get(name), made) for made in targets[name]] for name in targets}
        known = {name: [c for c in counts if c is not None] for name, counts in found.items()}
        return {name: counts for name, counts in known.items() if len(counts) == len(targets[name])}

    def _results(self, block: Block) -> Arrays:
        """What leaves a block in the network as it is quantized so far."""
        return _run(simulate(self.view.model, self.plan), block, self.quantized, self.job.threads)

    def _learn(self, index: int, store: Store, targets: Arrays) -> bool:
        """Train a block, or take what an earlier run learned; whether there was anything to learn."""
        block, piece = self.blocks[index], f"block {index}"
        variables = self._variables(block)
        known = store.get(piece)
        if known is not None:
            self._keep(variables.restored(known.arrays))
            return bool(known.arrays)
        try:
            found = self._trained(index, block, variables, targets)
        except GradientError as error:
            warnings.warn(f"block '{block.layers[-1]}' is not reconstructed: {error}", stacklevel=2)
            found = None
        store.put(piece, arrays={} if found is None else found.arrays())
        if found is not None:
            self._keep(found)
        return found is not None

    def _trained(self, index: int, block: Block, variables: Variables, targets: Arrays) -> Variables | None:
        """The variables of a block after training; None if it has none."""
        if not variables.weights:
            return None
        if inner := [node.op_type for node in block.nodes if has_bodies(node)]:
            raise GradientError(f"no gradient passes the body of {inner[0]}")
        samples = self._samples(block, targets)
        known = {name: self.floats[name][0] for name in block.sized}

        def of_a_shard(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
            return {name: (self.config.shard, *array.shape[1:]) for name, array in arrays.items()}

        sizes, important = of_a_shard({**samples.quantized, **samples.targets}), of_a_shard(samples.important)
        power = {
            name: float(np.mean(np.square(array, dtype=np.float64) * samples.important.get(name, 1.0))) * array[0].size
            for name, array in samples.targets.items()
        }
        graph = training_graph(self.graph, self.view.model.ir_model, block, sizes, power, important, known)
        inputs = {str(v.name) for v in graph.model.graph.inputs}
        grids = {name: grid for name, grid in variables.grids.items() if f"rounded:{name}" in inputs}
        variables = dataclasses.replace(variables, grids=grids)
        masks = {name: self._mask_size(name, graph.model) for name in grids}
        train_block(
            graph, variables, samples, masks, self.config, seed=(self.job.seed, index), threads=self.job.threads
        )
        return variables

    def _mask_size(self, name: str, model: ir.Model) -> tuple[int, ...]:
        """The size of the tensor of a grid: that of the operator that drops its rounding."""
        for node in model.graph:
            names = [None if v is None else v.name for v in node.inputs]
            if node.op_type == "Mul" and f"rounded:{name}" in names and node.inputs[0] is not None:
                shape = node.inputs[0].shape
                if shape is not None:
                    return tuple(int(size) for size in shape)  # type: ignore[arg-type]
        raise ValueError(f"no size is known for '{name}'")

    def _samples(self, block: Block, targets: Arrays) -> Samples:
        varying = [name for name in block.reads if name not in block.sized]
        quantized, floats = ({n: held[n] for n in varying} for held in (self.quantized, self.floats))
        important = self._counts(targets)
        if croppable(block, quantized, self.config.crop):
            alike = {name: [np.ones_like(a[:, :1]) for a in targets[name]] for name in block.writes}
            quantized, floats, important = cropped(
                quantized,
                floats,
                alike | important,
                self.config.crop,
                edge=margin(block),
                times=self.config.crops,
                seed=self.job.seed,
            )
            targets = _run(self.view.model.ir_model, block, floats, self.job.threads)
        parts = {"quantized": quantized, "floats": floats, "targets": targets, "important": important}
        whole = {part: {name: np.concatenate(v) for name, v in held.items()} for part, held in parts.items()}
        samples = Samples(**whole)
        for name, array in {**samples.quantized, **samples.targets}.items():
            if len(array) != samples.count:
                raise GradientError(f"the samples of '{name}' do not run along its first axis")
        return samples

    def _variables(self, block: Block) -> Variables:
        found, grids = Variables(weights={}, biases={}, grids={}), self.plan.operand_grids
        for name in block.layers:
            quant, layer = self.plan.layer(name), self.view.by_name[name]
            if quant is None or not _is_trained(layer, quant, grids):
                continue
            found.weights[name] = self._soft(layer.weight_array(), quant.weight)
            if trains_bias(layer):
                bias = constant(layer.bias)
                known = 0.0 if bias is None else np.asarray(bias, np.float64).reshape(-1)
                shift = np.asarray(quant.bias_shift or np.zeros(layer.output_channels))
                found.biases[name] = (known + shift / layer.bias_factor).astype(np.float32)
        for grid in trained_grids(self.plan):
            value = self.view.values[grid.tensor]
            one = TrainedGrid.of(grid, non_negative=not grid.zero_point and is_non_negative(value))
            one.rank = len(value.shape or ())
            found.grids[key(grid)] = one
        return found

    def _soft(self, weight: NDArray[np.float32], quant: WeightQuant) -> SoftWeight:
        if self.config.adaround:
            return AdaRoundWeight.between(weight, quant, self.config.adaround)
        return SoftWeight.of(weight, quant, self.config.softness)

    def _keep(self, variables: Variables) -> None:
        """Put what was learned into the plan."""

        def layer(quant: LayerQuant) -> LayerQuant:
            if quant.name not in variables.weights:
                return quant
            found, target = variables.weights[quant.name], self.view.by_name[quant.name]
            shift = quant.bias_shift
            if quant.name in variables.biases:
                bias = constant(target.bias)
                known = 0.0 if bias is None else np.asarray(bias, np.float64).reshape(-1)
                moved = (variables.biases[quant.name] - known) * target.bias_factor
                shift = tuple(float(s) for s in moved.astype(np.float32))
            held = weights.with_codes(quant.weight, found.codes())
            return dataclasses.replace(quant, weight=held, bias_shift=shift)

        learned = {key(grid.quant): grid.now() for grid in variables.grids.values()}
        self.plan = self.plan.map_layers(layer).map_activations(lambda a: learned.get(key(a), a))


def _is_trained(layer: Layer, quant: LayerQuant, grids: Mapping[str, ActivationQuant]) -> bool:
    """Whether codes of the layer can be learned: of a weight that it alone reads, and whose pairs never saturate."""
    plain = layer.owns_weight and not layer.weight_only and quant.weight.rounding is None
    return plain and quant.runs != "dynamic" and never_saturates(layer, quant, grids)


def _side_values(view: GraphView, cut: Sequence[Block], batches: Sequence[Batch], threads: int | None) -> Arrays:
    """What enters blocks without coming out of one, for every batch."""
    made = {name for block in cut for name in block.writes}
    wanted = dict.fromkeys(name for block in cut for name in block.reads if name not in made)
    given = {name: [batch.feeds[name] for batch in batches] for name in wanted if name in batches[0].feeds}
    rest = [name for name in wanted if name not in given]
    if rest:
        session = Session(view.model.ir_model, outputs=rest, threads=1)
        rows = list(in_parallel(lambda batch: session.run_list(batch.feeds), batches, workers=threads))
        given |= {name: [row[i] for row in rows] for i, name in enumerate(rest)}
    return given


def _error(results: Arrays, targets: Arrays, important: Arrays) -> float:
    """The squared error of what leaves a block, relative to its power, summed over tensors."""
    found = 0.0
    for name, made in results.items():
        gap = power = 0.0
        for a, b, w in zip(made, targets[name], important.get(name, [np.float32(1)] * len(made)), strict=True):
            gap += float(np.sum(np.square(a - b) * w, dtype=np.float64))
            power += float(np.sum(np.square(b) * w, dtype=np.float64))
        found += gap / max(power, 1e-30)
    return found


def _run(model: ir.Model, block: Block, held: Mapping[str, Sequence[NDArray[Any]]], threads: int | None) -> Arrays:
    """What leaves a block for what enters, for every batch."""
    made = block_part(model, block.reads, block.writes)
    for value in made.graph.inputs:
        value.type = ir.TensorType(ir.DataType.from_numpy(held[str(value.name)][0].dtype))
    session = Session(made, threads=1)
    count = len(held[block.reads[0]])

    def step(index: int) -> dict[str, NDArray[Any]]:
        return session.run({name: held[name][index] for name in block.reads})

    rows = list(in_parallel(step, range(count), workers=threads))
    return {name: [row[name] for row in rows] for name in block.writes}
