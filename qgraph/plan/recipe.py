"""What is to be done: the method and every setting, and what follows from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeVar

from qgraph.errors import UsageError
from qgraph.graph.layers import TABLE_OP, Layer
from qgraph.plan import registry
from qgraph.plan.changes import bits_for, parsed
from qgraph.plan.plan import MAX_SHIFTED_BITS
from qgraph.plan.settings import Settings, configured
from qgraph.plan.words import RECONSTRUCT, SAME, SEARCHED, SECOND_ORDER, Direction, Effort, Target, TargetCpu

FORMATS = ("qdq", "float")
GROUP = 32  # inputs that share a step where nothing else is asked for
FEW_BITS = 4  # the widest weights that have groups unasked
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A method and its settings.

    `protocol` "paper" sets what the paper of the method says (`Method.paper`) instead of the defaults here; what is
    given besides takes precedence. `settings` are hyper-parameters of methods, such as ("zeroq.steps", 500).

    `weights` and `activations` are bits, or None for floating point; `edge_bits` are the bits of the first and last
    layers ("same": as all others). With `activations` "dynamic", every MatMul and Gemm computes the 8-bit grid of its
    operand in every run, and other layers multiply in floating point: no data are needed. With `weights` "mixed", each
    layer takes one of `bits` so that the outputs move least (`direction` is that of the KL divergence) under one
    budget: `size_mb` of weights (1 MB = 2**20 bytes), `average_bits` (4 if no budget is given), or `max_drop`, the
    points of accuracy that the smallest model may lose. `search` adds up sensitivities ("frontier") or measures
    combinations ("groups"). The first and last layers are mixed too unless `edge_bits` is given.

    With `activations` "mixed", so does each tensor that layers read, under `average_activation_bits` (5 if no budget is
    given), the mean over all of its values, or under `max_drop`, which then counts the bytes of weights that are mixed
    and those of activations in one sample.

    `symmetric` says whether weight grids are symmetric about zero. By default, those of 8 bits and those that are
    searched are; narrower ones use both ends of their range, and files hold them without zero points.

    `clip` is the clipping method of activations, `weight_clip` that of weights (names from `qmath.clip_methods()`).
    `clip` and `rounding` may also be `qrater`: found by measuring the task, which then decides on bias shifts as well.
    `correct_outputs` corrects biases by the mean shift of every layer's output measured on samples, not the expected
    one. `allocate_bits` says whose channels have bits of their own (those of activations by the 2/3-power rule, those
    of weights as `aciq.quota` says); None tries the choices below 8 bits and keeps the best.
    """

    method: str = "aciq"
    weights: int | Literal["mixed"] | None = 8
    activations: int | Literal["mixed", "dynamic"] | None = 8
    edge_bits: int | Literal["same"] | None = None
    per_channel: bool = True
    symmetric: bool | None = None
    clip: str = "aciq"
    weight_clip: str = "mse"
    rounding: str | None = None
    """`nearest`, `second-order` or `qrater` (searched). None: nearest, below 8 bits second-order if better."""
    bias_correction: bool = True
    correct_outputs: bool = False
    effort: Effort = "default"
    """How long to look for codes that lose less, below 8 bits: rounded to second order by few samples (`fast`) or more,
    then also learned block by block (`best`)."""
    allocate_bits: str | None = None
    reduce_range: bool = False
    target_cpu: TargetCpu = "any"
    """`any`: weights are kept small enough for CPUs without VNNI not to saturate; `vnni`: they use all of int8."""
    target: Target = "batch"
    """What the file is for: `batch`, many rows at a time, or `decode`, products of one row at a time, whose weights of
    4 or 8 bits then stay packed in memory (`qgraph.plan.blocks`)."""
    portable: bool = False
    """Whether the file computes the same codes on every processor; see `qgraph.methods.portable`."""
    balance: bool = True
    """Whether outlier channels of what dynamic layers read are moved into weights, where that measures better."""
    dynamic_products: bool = False
    """Whether every MatMul and Gemm is dynamic although other layers have static grids."""
    group: int | Literal["none"] | None = None
    """How many inputs of a MatMul, a Gemm or a table share a step; by default 32 for weights of up to 4 bits,
    unless their whole range is wanted (`weight_clip` "max")."""
    keep: tuple[str, ...] = ()
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    size_mb: float | None = None
    average_bits: float | None = None
    average_activation_bits: float | None = None
    max_drop: float | None = None
    search: str = "frontier"
    direction: Direction = "forward"
    protocol: str = "deploy"
    fold_bn: bool = True
    """Whether BatchNormalization is folded into layers before they are quantized."""
    settings: Settings = ()
    changes: tuple[str, ...] = ()
    """Other bits for single layers, such as `layer2.*:weights=4`; of those that match, the last one counts."""

    @property
    def format(self) -> str:
        """The format of the file where the caller asks for none."""
        return registry.in_paper(self.method).get("format", FORMATS[0]) if self.protocol == "paper" else FORMATS[0]

    def config(self, kind: type[T]) -> T:
        """A method's dataclass of hyper-parameters, with the settings of the recipe."""
        return configured(kind, self.settings)

    @property
    def dynamic(self) -> bool:
        """Whether layers find the grids of their operands in every run."""
        return self.activations == "dynamic"

    @property
    def static_bits(self) -> int | None:
        """Bits of the activations whose grids are in the plan, 8 until they are mixed; None where there are none."""
        if self.mixes_activations:
            return 8
        return self.activations if isinstance(self.activations, int) else None

    @property
    def needs_data(self) -> bool:
        """Whether samples are needed: for ranges, to mix bits or round weights, or to measure the task."""
        measured = self.mixed or bool(self.ingredients) or self.correct_outputs or self.rounding == SECOND_ORDER
        measured = measured or self.effort == "best"
        return measured or self.static_bits is not None

    @property
    def undecided(self) -> bool:
        """Whether variants of the method are worth trying: some grids have fewer than 8 bits."""
        free = self.allocate_bits is None and self.clip == "aciq" and not (self.mixed or self.ingredients)
        return free and self.needs_data and any(b is not None and b != 8 for b in (self.weights, self.static_bits))

    @property
    def mixed(self) -> bool:
        """Whether every layer, or every tensor that layers read, gets bits of its own."""
        return self.mixes_weights or self.mixes_activations

    @property
    def mixes_weights(self) -> bool:
        return self.weights == "mixed"

    @property
    def mixes_activations(self) -> bool:
        return self.activations == "mixed"

    def symmetric_at(self, bits: int, *, floats: bool = False) -> bool:
        """Whether a weight grid of this width is symmetric about zero; zero points cost nothing in `floats`."""
        if self.symmetric is not None:
            return self.symmetric
        return (bits > MAX_SHIFTED_BITS - self.reduce_range and not floats) or bool(self.ingredients)

    def at(self, bits: int) -> Recipe:
        """The recipe with all weights at `bits`, including the first and last layers unless `edge_bits` is given."""
        return dataclasses.replace(self, weights=bits, edge_bits=self.edge_bits or bits)

    def at_activations(self, bits: int) -> Recipe:
        """The recipe with all activations that layers read at `bits`; see `at`."""
        weights = 8 if self.mixes_weights else self.weights
        return dataclasses.replace(self, weights=weights, activations=bits, edge_bits=self.edge_bits or bits)

    def group_at(self, bits: int) -> int | None:
        """How many inputs share a step in weights of this width, where a layer can have groups; None: the channel."""
        if isinstance(self.group, int):
            return self.group
        fitted = self.weight_clip != "max" and not self.ingredients and not registry.find(self.method).trains
        return GROUP if self.group is None and self.per_channel and fitted and bits <= FEW_BITS else None

    @property
    def ingredients(self) -> tuple[Literal["clip", "round", "bias"], ...]:
        """What a search looks for; () where nothing is searched."""
        searched = {"clip": self.clip == SEARCHED, "round": self.rounding == SEARCHED}
        searched["bias"] = self.bias_correction and (any(searched.values()) or self.method == SEARCHED)
        return tuple(name for name in ("clip", "round", "bias") if searched[name])

    @property
    def methods(self) -> tuple[str, ...]:
        """The recipe's method, and those that its options ask for: Q-Rater's search, second-order rounding.

        What a method stands on is not repeated.
        """
        own = [step.name for step in registry.chain(self.method)]
        asked = [SEARCHED] if self.ingredients else []
        asked += [SECOND_ORDER] if self.rounding == SECOND_ORDER else []
        return (self.method, *(name for name in asked if name not in own))

    @property
    def offered(self) -> tuple[str, ...]:
        """Methods for few bits that nobody asked for by name: what they make stays where samples prefer it."""
        known = [step.name for name in self.methods for step in registry.chain(name)]
        free = self.rounding is None and self.max_drop is None  # under which the plan was measured as it is
        free = free and not (self.ingredients or registry.find(self.method).trains)
        more = ([SECOND_ORDER] if free else []) + ([RECONSTRUCT] if self.effort == "best" else [])
        return tuple(name for name in more if name not in known)

    @property
    def needs_histograms(self) -> bool:
        """Whether the plan depends on more than ranges."""
        return self.clip != "max" and self.static_bits is not None

    def at_edges(self, others: int) -> int:
        """The bits of the first and last layers, where all others have so many."""
        return others if self.edge_bits == SAME else int(self.edge_bits or 8)

    def bits_of(self, layer: Layer, edges: frozenset[str]) -> int:
        """The weight bits of a layer; `reduce_range` leaves one bit of headroom for CPUs without VNNI."""
        weights = self.weights if isinstance(self.weights, int) else 8
        edge = layer.name in edges and layer.op != TABLE_OP and not (layer.is_tied and self.edge_bits is None)
        bits = self.at_edges(weights) if edge else weights
        bits = bits_for(parsed(self.changes), layer.name, "weights") or bits
        return min(bits, 7) if self.reduce_range else bits


def check_format(format: str) -> None:
    """Raise `UsageError` for an unknown format."""
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}': choose one of {', '.join(FORMATS)}")
