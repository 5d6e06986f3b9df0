"""plan -> plan: the same codes on every processor.

Three things differ between processors, and the plan excludes them, layer by layer:

* **sums beyond 32 bits**: the range of every sum follows from the codes (`qmath.sum_range`); steps of weights are made
  coarser where it leaves int32;
* **pairs of products beyond 16 bits**, on x86-64 without VNNI: such pairs are narrowed (`narrow`);
* **rescaling**: steps have so few bits that every multiplier is exact, and tensors that are added have steps at which
  no sum comes close to a rounding threshold (`steps`). Biases are written as integers.

What is still computed in floats between codes is named in the plan's notes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.sums import output_sums
from qgraph.graph.tensors import nearest
from qgraph.methods.portable.narrow import Narrowed, narrowed
from qgraph.methods.portable.steps import exact_activations, exact_weight_steps, result_grid
from qgraph.observe.statistics import Observations
from qgraph.onnxfile.edit import constant
from qgraph.plan import codes as weights
from qgraph.plan.plan import MAX_BITS, ActivationQuant, LayerQuant, QuantPlan, WeightQuant
from qgraph.plan.saturation import largest_pair, without_saturation
from qgraph.plan.sums import with_room_for_biases, with_shared_weights
from qmath.integer_range import INT32, within

_MARK = "portable: "
_ATTEMPTS = 32


def made_portable(plan: QuantPlan, view: GraphView, observed: Observations | None = None) -> QuantPlan:
    """The plan whose file computes the same codes on every processor, with notes on what that costs and what is left.

    `observed` weights the errors of pairs that are narrowed, and keeps the means of outputs. A portable plan stays as
    it is.
    """
    notes: list[str] = []
    before = plan
    plan, inexact = exact_activations(with_shared_weights(with_room_for_biases(plan, view), view), view)
    grids = plan.operand_grids
    tensors = {a.tensor: a for a in plan.activations if a.role == "tensor"}
    readers = _readers_of_each(plan, view)
    made: dict[Hashable, tuple[WeightQuant, Narrowed | None]] = {}
    layers = []
    for quant in plan.layers:
        layer = view.by_name[quant.name]
        shared = _shares(layer, quant)
        if shared not in made:
            those = [_Reader.of(one, view, tensors, grids, observed) for one in readers[shared]]
            made[shared] = _weight(layer, quant, those, known=observed is not None)
            if (found := made[shared][1]) is not None and found.moved:
                notes.append(f"{_MARK}layer '{quant.name}': {found}")
        operand = nearest(layer.input, grids) if quant.runs == "integers" else None
        quant = _unmoved(layer, dataclasses.replace(quant, weight=made[shared][0]), before, observed)
        layers.append(_within_int32(layer, quant, operand))
    if inexact:
        notes.append(f"{_MARK}may round differently elsewhere: {', '.join(inexact)}")
    kept = tuple(note for note in plan.notes if not note.startswith(_MARK) or "pairs of products" in note)
    told = tuple(note for note in notes if note not in kept)
    plan = dataclasses.replace(plan, layers=tuple(layers), notes=(*kept, *told), portable=True)
    return without_saturation(plan, view)


def portable_notes(plan: QuantPlan) -> tuple[str, ...]:
    """What `made_portable` says in a plan: pairs that were narrowed, and operators that may round differently."""
    return tuple(note.removeprefix(_MARK) for note in plan.notes if note.startswith(_MARK))


def _shares(layer: Layer, quant: LayerQuant) -> Hashable:
    """What layers have in common that read one weight through the same grid and kernel: files hold its codes once."""
    return layer.weight, quant.weight, quant.runs, layer.op, layer.output_axis, layer.groups


def _readers_of_each(plan: QuantPlan, view: GraphView) -> dict[Hashable, list[LayerQuant]]:
    found: dict[Hashable, list[LayerQuant]] = {}
    for quant in plan.layers:
        found.setdefault(_shares(view.by_name[quant.name], quant), []).append(quant)
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """What one layer asks of its weight: exact multipliers between two grids, and pairs of at most `limit`."""

    operand: ActivationQuant | None
    result: ActivationQuant | None
    limit: int
    variance: NDArray[np.float64] | None

    @classmethod
    def of(
        cls,
        quant: LayerQuant,
        view: GraphView,
        tensors: Mapping[str, ActivationQuant],
        grids: Mapping[str, ActivationQuant],
        observed: Observations | None,
    ) -> _Reader:
        layer = view.by_name[quant.name]
        operand = nearest(layer.input, grids) if quant.runs == "integers" else None
        limit = largest_pair(layer, quant, grids) if layer.has_integer_kernel else 0
        return cls(operand, result_grid(layer, tensors), limit, _variance(layer, observed) if limit else None)


def _joined(readers: list[_Reader]) -> _Reader:
    """What satisfies all readers of a weight; the multipliers of different results are rounded once, to float32."""
    operands = [reader.operand for reader in readers if reader.operand is not None]
    mantissas = {None if r.result is None else float(np.frexp(r.result.scale)[0]) for r in readers}
    paired = [reader for reader in readers if reader.limit]
    variances = [reader.variance for reader in paired if reader.variance is not None]
    return _Reader(
        operand=max(operands, key=lambda one: int(qmath.significant_bits(one.scale)), default=None),
        result=readers[0].result if len(mantissas) == 1 else None,
        limit=min((reader.limit for reader in paired), default=0),
        variance=np.mean(variances, axis=0) if variances and len(variances) == len(paired) else None,
    )


def _weight(
    layer: Layer, quant: LayerQuant, readers: list[_Reader], *, known: bool
) -> tuple[WeightQuant, Narrowed | None]:
    """The grid of a weight with exact steps for all that read it, and with pairs narrowed where some would saturate."""
    grid, reader = quant.weight, _joined(readers)
    if quant.runs == "floats" or not layer.has_integer_kernel or grid.input_scale:
        return grid, None

    def exact(steps: NDArray[np.floating]) -> NDArray[np.float64]:
        return exact_weight_steps(steps, reader.operand, reader.result, up=True)

    plain = grid.symmetric and grid.bits == MAX_BITS and not (grid.channel_bits or grid.unit or grid.codes)
    plain = plain and grid.rounding is None and set(grid.gain) == {1.0}
    found = narrowed(layer, grid, reader.limit, reader.variance, exact) if plain and reader.limit else None
    if found is not None:
        return found.grid, found
    if reader.operand is None or grid.channel_bits or (len(grid.scale) == 1 and grid.rounding is not None):
        return grid, None
    return _stepped(grid, reader.operand, reader.result, known=known), None


def _with_units(grid: WeightQuant, unit: NDArray[np.float64]) -> WeightQuant:
    """The grid with other units, and the same number of them in each step."""
    steps = (grid.multiples * np.expand_dims(unit, 1 - (grid.channel_axis or 0))).ravel()
    return dataclasses.replace(grid, scale=tuple(map(float, steps)), unit=tuple(map(float, unit)))


def _stepped(
    grid: WeightQuant, operand: ActivationQuant, result: ActivationQuant | None, *, known: bool
) -> WeightQuant:
    """The grid with exact steps in the kernel: by its scale, or by its gain where codes should stay.

    They stay if the plan holds them, and where it is not `known` what new ones would shift.
    """
    kernel = weights.kernel_scale(grid).astype(np.float64)
    held = bool(grid.codes) or not known
    wanted = exact_weight_steps(kernel, operand, result, up=not held)
    if np.array_equal(wanted, kernel):
        return grid
    if grid.unit:
        if held or grid.gain != (1.0,):
            return grid
        return _with_units(grid, wanted)
    whole = wanted * np.asarray(weights.finer(grid))
    if held:
        return dataclasses.replace(grid, gain=tuple(map(float, whole / np.asarray(grid.scale))))
    return dataclasses.replace(grid, scale=tuple(map(float, whole / np.asarray(grid.gain))))


def _variance(layer: Layer, observed: Observations | None) -> NDArray[np.float64] | None:
    """The variance of each channel of what the layer reads."""
    if observed is None:
        return None
    channels = observed.operand(layer).channels
    return None if channels is None or not np.size(channels.mean) else np.square(np.asarray(channels.std, np.float64))


def _unmoved(layer: Layer, quant: LayerQuant, before: QuantPlan, observed: Observations | None) -> LayerQuant:
    """The layer with its bias shifted by what new codes take from the mean of its outputs."""
    old = before.layer(quant.name)
    channels = None if observed is None or layer.weight_only else observed.operand(layer).channels
    if (
        old is None
        or old.weight == quant.weight
        or not old.bias_shift
        or channels is None
        or not np.size(channels.mean)
    ):
        return quant
    array = layer.weight_array()
    lost = weights.quantized(array, old.weight).astype(np.float64) - weights.quantized(array, quant.weight)
    shift = np.asarray(old.bias_shift) + output_sums(layer, lost, np.asarray(channels.mean, np.float64))
    return dataclasses.replace(quant, bias_shift=tuple(float(s) for s in shift.astype(np.float32)))


def _within_int32(layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> LayerQuant:
    """The layer with steps so coarse that no sum can leave 32 bits."""
    if operand is None:
        return quant
    for _ in range(_ATTEMPTS):
        over = [row for row, fits in enumerate(_sums_fit(layer, quant.weight, operand)) if not fits]
        if not over:
            return quant
        grid = quant.weight
        factors = np.ones(len(grid.unit or grid.scale))
        factors[over if len(factors) > 1 else slice(None)] = 2.0  # exact steps stay exact
        if grid.unit:
            wider = _with_units(grid, np.asarray(grid.unit) * factors)
        else:
            wider = dataclasses.replace(grid, scale=tuple(map(float, np.asarray(grid.scale) * factors)))
        quant = dataclasses.replace(quant, weight=dataclasses.replace(wider, codes=""))
    return dataclasses.replace(quant, runs="floats")


def _sums_fit(layer: Layer, grid: WeightQuant, operand: ActivationQuant) -> Iterator[bool]:
    """Whether the sums of each output fit 32 bits with any bias that has at most half of them."""
    stored = weights.stored(weights.codes(layer.weight_array(), grid), grid)
    low, high = -operand.zero_point, operand.qmax - operand.zero_point
    least, greatest = qmath.sum_range(layer.kernel_rows(stored), low, high)
    bias = constant(layer.bias)
    room = 0 if bias is None else 2**30
    return iter(within((least - room, greatest + room), INT32).tolist())
