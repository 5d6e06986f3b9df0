"""plan -> plan: weights rounded to second order, layer after layer (`qmath.round_second_order`).

Every layer reads what reaches it through the layers quantized so far, and aims at what the float layer computes from
float operands: it also makes up for the errors before it, as far as a linear layer can. With centred moments, the mean
of its error goes into the bias:

    shift = E[y] - b - gain q E[x]

Positions count by their importance for the network's outputs (`qgraph.gradient.importance`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.gradient.importance import counted
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.lowering.places import shift_bias
from qgraph.lowering.simulate import simulate
from qgraph.methods.second_order.operands import as_rows, from_rows, rows, why_not
from qgraph.observe.relay import Relay
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.edit import add_initializer, constant
from qgraph.plan import codes as weights
from qgraph.plan.plan import MAX_BITS, LayerQuant, QuantPlan, WeightQuant
from qgraph.plan.saturation import largest_pair, saturated
from qgraph.running.job import Job
from qgraph.running.threads import for_matrices_of
from qgraph.samples.dataset import Dataset

MEMORY = 2 << 30  # bytes of activations that are held between two layers, about


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondOrderConfig:
    """How weights are rounded to second order.

    `samples` are the most that are run, `rows` the operands taken of each layer, and as many more for each product of
    an output as `rows_per_product` says. `damping` and `factors` are those of `qmath.round_second_order`; grids of
    groups have clips of their own already, and are tried as they are. Weights of more than `bits` keep their codes.
    """

    samples: int = 256
    rows: int = 8192
    rows_per_product: int = 8
    damping: float = 0.01
    factors: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
    bits: int = MAX_BITS
    batch: int = 16


FAST = SecondOrderConfig(samples=64, rows=4096, rows_per_product=4, factors=(1.0, 0.9, 0.8))


def round_weights(
    plan: QuantPlan,
    view: GraphView,
    data: Dataset,
    *,
    config: SecondOrderConfig | None = None,
    observed: Observations | None = None,
    job: Job | None = None,
    important: Mapping[str, NDArray[np.float32]] | None = None,
) -> QuantPlan:
    """The plan with codes, gains and bias shifts found layer after layer on samples; labels are not needed.

    `important` holds how much each position of a layer's results counts, the same for all samples.
    """
    chosen, job = config or SecondOrderConfig(), job or Job()
    spread, size = chosen_samples(data, chosen, observed)
    batches = list(spread.batches(size))
    done = {q.name: q for q in plan.layers if _takes_codes(view.by_name[q.name], q, chosen)}
    grids = plan.operand_grids
    start = plan.map_layers(lambda q: dataclasses.replace(q, bias_shift=()) if q.name in done else q)
    lowered = simulate(view.model, start)
    twins = GraphView(dataclasses.replace(view.model, ir_model=lowered)).by_name
    pair = _Pair(
        Relay(view.model.ir_model, batches, threads=job.threads),
        Relay(lowered, batches, threads=job.threads),
        chosen,
        important or {},
    )
    with job.progress.stage("rounding", len(done)) as advance:
        for layer in view.layers:
            if layer.name in done:
                allowed = largest_pair(layer, done[layer.name], grids)
                quant = pair.rounded(layer, twins[layer.name], done[layer.name], allowed)
                done[layer.name] = quant
                _put(lowered.graph, twins[layer.name], layer, quant)
                advance(1, layer.name)
    return plan.map_layers(lambda q: done.get(q.name, q))


def multiplications(plan: QuantPlan, view: GraphView, config: SecondOrderConfig | None = None) -> int:
    """How many multiplications the linear algebra of all layers takes, about: moments, ridges and columns."""
    chosen, total = config or SecondOrderConfig(), 0
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        if _takes_codes(layer, quant, chosen):
            shape = layer.weight_array().shape
            outputs = shape[layer.output_axis]
            products = math.prod(shape) // outputs
            positions = chosen.rows + chosen.rows_per_product * products
            total += layer.groups * products**2 * (positions + 4 * products)
            total += products**2 * outputs * len(chosen.factors)
    return total


def _takes_codes(layer: Layer, quant: LayerQuant, config: SecondOrderConfig) -> bool:
    grid = quant.weight
    along = grid.granularity
    fits = along.axis is None or grid.channel_axis == layer.output_axis
    return not why_not(layer) and grid.bits <= config.bits and grid.rounding is None and fits


def chosen_samples(data: Dataset, config: SecondOrderConfig, observed: Observations | None) -> tuple[Dataset, int]:
    """Samples spread over the data, as many as memory holds with what lies between two layers; size of a batch."""
    nbytes = 0 if observed is None else observed.sample_bytes
    most = int(np.clip(MEMORY // max(nbytes // 4, 1), min(config.batch, data.count), config.samples))
    spread = data.choose(range(0, data.count, -(-data.count // most)))
    return spread, min(config.batch, max(1, spread.count // 2))  # two halves, at least


@dataclass(frozen=True, slots=True)
class _Pair:
    """The float network and the quantized one, run side by side."""

    float: Relay
    quantized: Relay
    config: SecondOrderConfig
    important: Mapping[str, NDArray[np.float32]]

    def rounded(self, layer: Layer, twin: Layer, quant: LayerQuant, allowed: int) -> LayerQuant:
        """The layer with its weight rounded by what reaches it."""
        shape = layer.weight_array().shape
        products = int(np.prod(shape)) // shape[layer.output_axis]
        with for_matrices_of(products):
            halves = self._moments(layer, twin, products)
            return quant if halves is None else _rounded(layer, quant, halves, allowed, self.config)

    def _moments(self, layer: Layer, twin: Layer, products: int) -> list[qmath.Moments] | None:
        """Those of every other batch, and of the batches between; None if there are none, or squares overflow."""
        halves, rng = [qmath.MomentsAccumulator() for _ in range(2)], np.random.default_rng(0)
        operands, results = self.quantized.value(twin.input), self.float.value(layer.output)
        wanted = self.config.rows + self.config.rows_per_product * products
        important = self.important.get(str(layer.output.name))
        with np.errstate(over="ignore", invalid="ignore"):
            for index, (operand, result) in enumerate(zip(operands, results, strict=True)):
                found = rows(layer, operand, result, -(-wanted // len(operands)), rng, counted(important, result))
                if found.results.size:
                    halves[index % 2].update(found.operands, found.results, found.weights)
            made = [half.result() for half in halves if half.count]
        return made if len(made) == 2 and all(half.is_finite for half in made) else None


def _rounded(
    layer: Layer, quant: LayerQuant, halves: list[qmath.Moments], allowed: int, config: SecondOrderConfig
) -> LayerQuant:
    grid, weight = quant.weight, layer.weight_array()
    own = grid.channel_axis is not None  # whether every output has scales of its own
    moments = halves[0].joined(halves[1])
    problem = _Scaled.of(layer, grid, moments.hessian, qmath.aimed_weights(as_rows(layer, weight), halves))
    found = qmath.round_second_order(
        problem.weight,
        problem.hessian,
        _row_grid(layer, grid, weight.shape, problem.kept),
        aim=problem.aim,
        damping=config.damping,
        factors=config.factors if own and grid.bits < MAX_BITS and not grid.unit else (1.0,),
        refit=own,
    )
    before = as_rows(layer, weights.codes(weight, grid))
    codes = before.copy()
    codes[:, problem.kept] = found.codes
    held = weights.with_codes(dataclasses.replace(grid, even=""), from_rows(layer, codes, weight.shape))
    over = saturated(layer, held, allowed)
    if over.any():  # these channels stay as they are
        held = weights.with_codes(grid, from_rows(layer, np.where(over[:, None], before, codes), weight.shape))
    if own:
        held = _rescaled(held, np.where(over, 1.0, found.factor), np.where(over, grid.gain, found.gain))
    return _settled(layer, dataclasses.replace(quant, weight=held), moments)


def _rescaled(grid: WeightQuant, factor: NDArray[np.float64], gain: NDArray[np.float64]) -> WeightQuant:
    """The grid with the scales of every channel times its factor, then its gain; groups take both into their steps."""

    def times(numbers: tuple[float, ...], amounts: NDArray[np.float64]) -> tuple[float, ...]:
        laid = np.reshape(numbers, (-1, len(amounts)) if grid.granularity.axis == 0 else (len(amounts), -1))
        by_channel = amounts if grid.granularity.axis == 0 else amounts[:, None]
        return tuple((laid * by_channel).astype(np.float32).ravel().tolist())

    if not grid.unit:
        scale = (np.asarray(grid.scale) * factor).astype(np.float32)
        return dataclasses.replace(grid, scale=tuple(scale.tolist()), gain=tuple(gain.tolist()))
    unit = (np.asarray(grid.unit) * factor * gain).astype(np.float32)
    return dataclasses.replace(grid, scale=times(grid.scale, factor * gain), unit=tuple(unit.tolist()))


def _settled(layer: Layer, quant: LayerQuant, moments: qmath.Moments) -> LayerQuant:
    """The layer with the shift of its bias at which its mean output is the float layer's."""
    values = as_rows(layer, weights.quantized(layer.weight_array(), quant.weight)).astype(np.float64)
    groups = values.reshape(len(moments.mean), -1, values.shape[1])
    reached = np.einsum("gok,gk->go", groups, moments.mean).reshape(-1)
    bias = constant(layer.bias)
    known = 0.0 if bias is None else np.asarray(bias, np.float64).reshape(-1) * layer.bias_factor
    shift = (moments.target_mean - known - reached).astype(np.float32)
    return dataclasses.replace(quant, bias_shift=tuple(float(s) for s in shift))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaled:
    """The problem of a layer whose operand is divided by `input_scale` and whose weight contains it.

    Only the columns `kept` are rounded; those without a factor are multiplied in floats.
    """

    weight: NDArray[np.float64]
    hessian: NDArray[np.float64]
    aim: NDArray[np.float64]
    kept: NDArray[np.int64]

    @classmethod
    def of(cls, layer: Layer, grid: WeightQuant, hessian: NDArray[np.float64], aim: NDArray[np.float64]) -> _Scaled:
        weight = layer.weight_array().astype(np.float64)
        rows = as_rows(layer, weight)
        if not grid.input_scale:
            return cls(weight=rows, hessian=hessian, aim=aim, kept=np.arange(rows.shape[1]))
        factors = as_rows(layer, weights.scaled(np.ones_like(weight), grid))
        left = (factors == 0).any(axis=0)
        kept = np.flatnonzero(~left)
        if left.any():  # of a matrix, which is a single group: what their weights miss of the aim, the others make up
            inner = hessian[0][np.ix_(kept, kept)] + 1e-6 * np.trace(hessian[0]) / len(rows[0]) * np.eye(len(kept))
            missing = (aim - rows)[:, left] @ hessian[0][np.ix_(left, kept)]
            aim = aim[:, kept] + np.linalg.solve(inner, missing.T).T
            rows, hessian, factors = rows[:, kept], hessian[:, kept][:, :, kept], factors[:, kept]
        of_group = factors[:: len(factors) // len(hessian)]
        hessian = hessian / (of_group[:, :, None] * of_group[:, None, :])
        return cls(weight=rows * factors, hessian=hessian, aim=aim * factors, kept=kept)


def _row_grid(layer: Layer, grid: WeightQuant, shape: tuple[int, ...], kept: NDArray[np.int64]) -> qmath.Grid:
    """The grid of the columns `kept` of the weight laid out as rows; where groups have steps, one for each weight."""
    along = grid.granularity
    if along.group is None:
        rows = dataclasses.replace(along, axis=None if along.axis is None else 0)
        outputs = shape[layer.output_axis]
        return weights.rounding_grid(dataclasses.replace(grid, granularity=rows, codes=""), (outputs, len(kept)))
    steps, zero = (
        as_rows(layer, np.broadcast_to(along.lay(numbers, shape), shape))[:, kept].ravel()
        for numbers in (grid.scale, grid.zero_point)
    )
    return qmath.Grid(grid.bits, steps, zero_point=zero, narrow=grid.symmetric, axis=1, group=1)


def _put(graph: ir.Graph, twin: Layer, layer: Layer, quant: LayerQuant) -> None:
    """Let the quantized network compute with the layer as it was rounded."""
    array = weights.quantized(layer.weight_array(), quant.weight)
    twin.node.replace_input_with(twin.weight_index, add_initializer(graph, f"{layer.weight.name}/rounded", array))
    if quant.bias_shift:
        shift_bias(graph, twin, np.asarray(quant.bias_shift, np.float64))
