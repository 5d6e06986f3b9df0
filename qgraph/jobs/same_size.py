"""What else would have given a file of the size of mixed bits: said beside the result, by samples held out.

The rivals are one width for all layers, the widest that takes no more than the mixed weights, and 4 bits, which most
people would try first. No rival is learned: what reconstruction adds to mixed bits is measured where it was asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from qgraph.graph.sites import GraphView, choose_layers
from qgraph.jobs.plan_judge import PlanJudge
from qgraph.jobs.prepare import Gathered
from qgraph.lowering.packing import stored_bytes, weight_bytes
from qgraph.methods.zeroq.allocate import MEGABYTE
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import Recipe

USUAL = 4  # bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A plan, the bytes of its weights, and the SQNR of its worst output in dB."""

    name: str
    nbytes: int
    decibels: float

    def __str__(self) -> str:
        return f"{self.name}, {self.nbytes / MEGABYTE:.3f} MB: {self.decibels:.1f} dB"


def beside_others(
    mixed: QuantPlan, finished: QuantPlan, given: Gathered, *, added: Sequence[str] = ()
) -> tuple[str, ...]:
    """How the `finished` plan compares with others of the size of the `mixed` one it came from, in words.

    `added` are the methods that made one from the other.
    """
    samples, recipe = given.trial.samples, given.recipe
    if samples is None or not recipe.mixes_weights:
        return ()
    judge = PlanJudge(dataclasses.replace(given, samples=samples))
    size = _bytes(finished, given.view)

    def rival(name: str, plan: QuantPlan) -> Rival:
        return Rival(name=name, nbytes=_bytes(plan, given.view), decibels=judge.worst_db(plan))

    own = [rival("mixed bits", mixed if added else finished)]
    own += [rival(f"mixed bits and {method}", finished) for method in added[-1:]]
    others = [rival(f"{bits} bits for all layers", _with_bits(mixed, given, bits)) for bits in _widths(given, size)]
    return compared(own, others, size, sum(batch.count for batch in judge.batches))


def compared(own: Sequence[Rival], others: Sequence[Rival], size: int, samples: int) -> tuple[str, ...]:
    """Which is the best that takes at most `size` bytes, and which of the larger ones are worse nevertheless."""
    best, *rest = sorted((r for r in (*own, *others) if r.nbytes <= size), key=lambda r: -r.decibels)
    listed = "; ".join(map(str, (best, *rest)))
    larger = [r for r in others if r.nbytes > size and r.decibels < best.decibels]
    return (
        f"best of {size / MEGABYTE:.3f} MB of weights, on {samples} samples: {listed}",
        *(f"larger, and worse than {best.name}: {r}" for r in larger),
    )


def _widths(given: Gathered, size: int) -> list[int]:
    """The widest of the allowed bits that takes no more than `size` bytes in all layers, and the usual ones."""
    layers, _ = choose_layers(given.view, given.recipe.keep)
    edges = given.view.edge_layers

    def fits(bits: int) -> bool:
        at = _fixed(given.recipe, bits)
        return sum(weight_bytes(layer.weight_array().shape, at.bits_of(layer, edges)) for layer in layers) <= size

    allowed = set(given.recipe.bits)
    return sorted({max(filter(fits, allowed), default=USUAL), USUAL} & allowed)


def _fixed(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with this width for all weights."""
    return dataclasses.replace(recipe, weights=bits, size_mb=None, average_bits=None, max_drop=None)


def _with_bits(plan: QuantPlan, given: Gathered, bits: int) -> QuantPlan:
    """The plan with this width for all weights, and its own activations."""
    layers = dataclasses.replace(given, recipe=_fixed(given.recipe, bits), variants=False).plan().layers
    return dataclasses.replace(plan, layers=layers)


def _bytes(plan: QuantPlan, view: GraphView) -> int:
    return sum(stored_bytes(view.by_name[q.name].weight_array().shape, q.weight) for q in plan.layers)
