"""The settings of a search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal, get_args

from qgraph.errors import UsageError

if TYPE_CHECKING:
    from qgraph.plan.plan import Rounding

Objective = Literal["task", "accuracy", "loss", "kl", "mse"]
Ingredient = Literal["clip", "round", "bias"]
Search = Literal["grid", "bo"]
INGREDIENTS: tuple[Ingredient, ...] = get_args(Ingredient)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
LABELLED: Objective = "loss"  # the default where samples have labels
WITH_LABELS: tuple[Objective, ...] = ("task", "accuracy", "loss")
SEARCHES: tuple[Search, ...] = get_args(Search)

_TENTHS = tuple(i / 10 for i in range(1, 11))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What a Q-Rater search looks for (Algorithm 1, with the grids of section 5.4), and what makes it cheaper.

    What is searched:

    * `ingredients`: any of clip, round and bias.
    * `clips`: shares of the largest value, in (0, 1]. `gamma_n`, `gamma_s`: the parameters of rounding (Eq. 6, in the
      reading `exponent`); an empty `gamma_s` means first-order rounding (Eq. 4).
    * `search`: `grid`, or `bo`, which adds up to `further` points of Bayesian optimisation and stops after `patience`
      of them in a row without improvement.
    * `objective`: task (correct answers, with the loss to decide between equals), accuracy, loss, kl or mse (the
      distance of outputs from the float network's). The default is loss with labels, else mse.
    * `base`: also try the grids of the starting plan (not in the paper). `corrected`: measure every candidate with its
      own bias shift (Eq. 7), so that errors which a shift would undo do not decide; Algorithm 1 tries shifts last.
    * `passes`: how many times to go through the layers; from the second pass on, all other layers are quantized.

    What makes it cheaper:

    * `race`: measure candidates on `first` samples, then on twice as many, and so on. Candidates drop out if they lose
      to the leader (paired one-sided tests, at `confidence` for each round as a whole), or if more than eight are left
      and they are not among the best share `keep` (1: the tests alone decide). A race ends when no candidate can beat
      the leader by more than the share `tolerance` of its objective. Every race shuffles the samples with `seed`.
    * `reuse`: measure candidates that compute the same only once. `cache`: keep the results of earlier layers, up to
      `cache_bytes` in memory and beyond that on disk. Neither changes the result.

    With `fine`, activations are rounded via an 8-bit code, which the exported graph looks up.

    Raises:
        UsageError: a setting is unknown or out of range.

    Example:
        >>> from qgraph import SearchConfig
        >>> config = SearchConfig(ingredients=("clip",), clips=(0.5, 0.75, 1.0))
        >>> config.evaluations(activations=True)  # per layer: three clips for the weight, three for the operand
        6
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
    fine: bool = dataclasses.field(default=False, metadata={"set": False})
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
        """The grid of roundings, with rounding to nearest first, so that it wins ties."""
        from qgraph.plan.plan import Rounding

        seconds: tuple[float | None, ...] = self.gamma_s or (None,)
        pairs = sorted(product(self.gamma_n, seconds), key=lambda pair: pair[0] != 0)
        return tuple(Rounding(gamma_n=n, gamma_s=s, reading=self.exponent) for n, s in pairs)

    def evaluations(self, *, activations: bool) -> int:
        """How many evaluations Algorithm 1 makes for one layer, each point of the grid on all samples."""
        sides = 2 if activations else 1
        stages = ("clip" in self.ingredients) * len(self.clips) + ("round" in self.ingredients) * len(self.roundings)
        searches = ("clip" in self.ingredients) + ("round" in self.ingredients)
        further = self.further * searches if self.search == "bo" else 0
        return sides * (stages + further) + 2 * ("bias" in self.ingredients)

    def identity(self) -> dict[str, object]:
        """Every setting that a choice depends on, for the store; without `passes`, so that more can be added later."""
        found = dataclasses.asdict(self)
        unused = ("further", "patience") if self.search == "grid" else ()
        for name in ("passes", "reuse", "cache", "cache_bytes", *unused):
            del found[name]
        return found
