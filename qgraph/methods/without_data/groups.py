"""plan -> plan: steps for groups of inputs in those weights that wide grids leave noisy, where no samples tell more.

At 8 bits, most weights keep 40 dB and more. Where a few large ones stretch a channel, 10 dB less are usual; a weight
that n layers read adds its noise n times; and all noises, relative to their signals, add up along the network. Weights
get a step for every 32, 16 or 8 inputs, always where it lowers the sum by most for the bytes it takes: until that is
`ENOUGH`, or `EXTRA` bits are spent, on average over all weights. Layers run in floats, which are unpacked once, so that
groups cost no time.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

import qmath
from qgraph.graph.layers import TABLE_OP, Layer
from qgraph.graph.sites import GraphView
from qgraph.methods.without_data.expected import Expected
from qgraph.methods.without_data.widths import relative_noise
from qgraph.plan.grouped import group_axis, grouped_grid, takes_groups
from qgraph.plan.plan import LayerQuant, QuantPlan, WeightQuant

EXTRA = 1.0  # bits, on average over all weights
ENOUGH = 4e-4  # of noise over signal, the sum over all layers
SIZES = (32, 16, 8)
_OVERHEAD = 256  # bytes of the operators that unpack groups


def with_groups_for_noisy_weights(plan: QuantPlan, view: GraphView, expected: Mapping[str, Expected]) -> QuantPlan:
    """The plan with groups in the weights of float layers that have one step per channel, and too much noise."""
    readers: dict[ir.Value, list[LayerQuant]] = {}
    for quant in plan.layers:
        readers.setdefault(view.by_name[quant.name].weight, []).append(quant)
    weights = [
        _Weight.of(value, some, view, expected)
        for value, some in readers.items()
        if all(_may_have_groups(quant, view.by_name[quant.name]) for quant in some)
        and len(some) == len(list(value.uses()))
        and len({quant.weight for quant in some}) == 1
    ]
    total = sum(math.prod(view.by_name[some[0].name].weight_array().shape) for some in readers.values())
    better, spent = _finer(weights, EXTRA * total)
    if not better:
        return plan
    said = f"{len(better)} layers have steps for groups of inputs: {spent / total:.2f} bits a weight on average"
    finer = plan.map_layers(lambda quant: dataclasses.replace(quant, weight=better.get(quant.name, quant.weight)))
    return dataclasses.replace(finer, notes=(*finer.notes, said))


def _may_have_groups(quant: LayerQuant, layer: Layer) -> bool:
    grid = quant.weight
    plain = not (grid.unit or grid.channel_bits or grid.rounding or grid.codes or grid.input_scale or grid.shift)
    floats = layer.op != TABLE_OP and quant.runs not in ("dynamic", "blocks")
    return plain and floats and grid.granularity.axis is not None and takes_groups(layer, asked=True, most=None)


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight, the names of its readers and their grid, and its noise and further bits with groups of `size` inputs.

    Grids with groups are made again where they are taken: all of them together would be as large as the weights.
    """

    layer: Layer
    names: tuple[str, ...]
    expected: Expected | None
    quant: LayerQuant
    size: int
    noise: float
    bits: float

    @classmethod
    def of(
        cls, value: ir.Value, some: Collection[LayerQuant], view: GraphView, expected: Mapping[str, Expected]
    ) -> _Weight:
        first, names = next(iter(some)), tuple(quant.name for quant in some)
        layer, known = view.by_name[first.name], expected.get(first.name) if len(names) == 1 else None
        return cls(layer, names, known, first, 0, len(names) * relative_noise(first, layer, known), 0.0)

    def finer(self) -> _Weight | None:
        """The same with the next smaller groups; None if there are none."""
        shape = self.layer.weight_array().shape
        axis = group_axis(self.layer)
        size = next((size for size in SIZES if size < (self.size or math.inf) and size < shape[axis]), None)
        if size is None:
            return None
        finer = dataclasses.replace(self, size=size)
        quant = dataclasses.replace(self.quant, weight=finer.grid())
        noise = len(self.names) * relative_noise(quant, self.layer, self.expected)
        steps = math.prod(finer.granularity.parameter_shape(shape))
        return dataclasses.replace(finer, noise=noise, bits=8 * (steps * (2 - quant.weight.symmetric) + _OVERHEAD))

    @property
    def granularity(self) -> qmath.Granularity:
        return qmath.Granularity(axis=group_axis(self.layer), group=self.size)

    def grid(self) -> WeightQuant:
        """The grid with groups of `size` inputs."""
        old = self.quant.weight
        form = {"bits": old.bits, "symmetric": old.symmetric, "most": None}
        return grouped_grid(self.layer.weight_array(), self.granularity, **form)  # type: ignore[arg-type]


def _finer(weights: Collection[_Weight], budget: float) -> tuple[dict[str, WeightQuant], float]:
    """The grids with groups by names of layers, and the bits that they take more than those without."""
    taken: dict[int, _Weight] = {}
    steps: list[tuple[float, int, _Weight, _Weight]] = []
    spent, noise = 0.0, sum(weight.noise for weight in weights)

    def offer(index: int, now: _Weight) -> None:
        after = now.finer()
        if after is not None and after.noise < now.noise:
            heapq.heappush(steps, ((after.noise - now.noise) / (after.bits - now.bits), index, now, after))

    for index, weight in enumerate(weights):
        offer(index, weight)
    while steps and noise > ENOUGH:
        _, index, now, after = heapq.heappop(steps)
        if spent + after.bits - now.bits > budget:
            continue
        spent, noise = spent + after.bits - now.bits, noise + after.noise - now.noise
        taken[index] = after
        offer(index, after)
    return {name: grid for one in taken.values() for grid in [one.grid()] for name in one.names}, spent
