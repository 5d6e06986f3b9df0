"""What a search looks for, where, and how carefully."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from qgraph.errors import UsageError
from qgraph.plan.plan import Rounding

Objective = Literal["accuracy", "loss", "kl", "mse"]
Ingredient = Literal["clip", "round", "bias"]
Search = Literal["grid", "bo"]
INGREDIENTS: tuple[Ingredient, ...] = get_args(Ingredient)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
SEARCHES: tuple[Search, ...] = get_args(Search)

_TENTHS = tuple(i / 10 for i in range(1, 11))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Algorithm 1 with the grids of section 5.4, and what makes it cheap.

    `ingredients`: clip, round, bias, in any number. `search`: `grid`, or `bo`, which adds `further` points of Bayesian
    optimisation to the grid's, fewer where `patience` of them in a row are no better. `objective` (None: mse, whose
    value on one sample says most about the others, so that races are safe and what they find holds on new data).
    `gamma_s` empty: first order. `exponent`: reading of Eq. 6.
    `base`: also try what the starting plan has, not in the paper. `corrected`: every candidate is measured with its own
    shift of the bias (Eq. 7), so that the choice is not between errors that a shift would undo; Algorithm 1 looks at
    shifts last. `passes`: how often the layers are gone through; from the second on, all other layers are quantized.

    `race`: candidates are measured on `first` samples, then on twice as many, and so on; those that lose to the leader
    (paired one-sided tests, at `confidence` in a round together) drop out, and so do all but the best share `keep`
    where more than eight are left (1: the tests alone).
    Every race takes the samples in an order of its own. It is over when nobody left can be better by more than
    the share `tolerance` of the leader's objective. `reuse`: candidates that compute the same are measured once.
    `cache`: what the layers before compute is kept, up to `cache_bytes` in memory and beyond that on disk. `reuse` and
    `cache` change no result.

    `fine`: activations are rounded by way of an 8-bit code, so that the exported graph looks their codes up.
    """

    ingredients: tuple[Ingredient, ...] = INGREDIENTS
    search: Search = "grid"
    objective: Objective | None = None
    clips: tuple[float, ...] = _TENTHS
    gamma_n: tuple[float, ...] = tuple(i / 10 for i in range(-10, 11))
    gamma_s: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    exponent: Literal["distance", "printed"] = "distance"
    further: int = 50
    patience: int = 10
    base: bool = True
    corrected: bool = True
    passes: int = 1
    race: bool = True
    first: int = 64
    confidence: float = 0.99
    keep: float = 0.5
    tolerance: float = 0.002
    reuse: bool = True
    cache: bool = True
    cache_bytes: int = 2**30
    fine: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("search", self.search, SEARCHES),
            ("objective", self.objective or OBJECTIVES[0], OBJECTIVES),
            *(("ingredient", ingredient, INGREDIENTS) for ingredient in self.ingredients),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} '{value}': choose {', '.join(known)}")
        if not self.ingredients or not self.clips or not self.gamma_n:
            raise UsageError("a search needs at least one ingredient, clip and gamma_n")
        if any(not 0 < clip <= 1 for clip in self.clips):
            raise UsageError(f"clips are shares of the largest value, in (0, 1], not {self.clips}")
        if not (0.5 < self.confidence < 1 and 0 < self.keep <= 1):
            raise UsageError(f"need 0.5 < confidence < 1 and 0 < keep <= 1, not {self.confidence} and {self.keep}")
        if not self.tolerance >= 0:
            raise UsageError(f"the tolerance is a share of the objective, not {self.tolerance}")
        if self.first < 2 or self.passes < 1 or min(self.further, self.patience) < 0:
            raise UsageError(
                f"need first >= 2, passes >= 1, further >= 0, patience >= 0, not {self.first}, {self.passes}, "
                f"{self.further}, {self.patience}"
            )

    @property
    def roundings(self) -> tuple[Rounding, ...]:
        """The grid of roundings, nearest first: it wins where nothing is better."""
        seconds: tuple[float | None, ...] = self.gamma_s or (None,)
        pairs = sorted(product(self.gamma_n, seconds), key=lambda pair: pair[0] != 0)
        return tuple(Rounding(gamma_n=n, gamma_s=s, reading=self.exponent) for n, s in pairs)

    def evaluations(self, *, activations: bool) -> int:
        """Evaluations that Algorithm 1 makes for one layer, every point of the grid on every sample."""
        sides = 2 if activations else 1
        stages = ("clip" in self.ingredients) * len(self.clips) + ("round" in self.ingredients) * len(self.roundings)
        searches = ("clip" in self.ingredients) + ("round" in self.ingredients)
        further = self.further * searches if self.search == "bo" else 0
        return sides * (stages + further) + 2 * ("bias" in self.ingredients)

    def identity(self) -> dict[str, object]:
        """Everything that a choice depends on, for the store; a finished search goes on with more `passes`."""
        found = dataclasses.asdict(self)
        unused = ("further", "patience") if self.search == "grid" else ()
        for name in ("passes", "reuse", "cache", "cache_bytes", *unused):
            del found[name]
        return found
