"""`QuantPlan`: every decision about quantizing a model, as one frozen value.

A plan names its model by digest and holds the grid of every quantized weight and activation. It is comparable, hashable
by content, and round-trips through JSON exactly, so that it can be edited by hand, diffed and kept under version
control. Methods are functions from a plan to a better plan; `simulate` and `export` turn a plan into nodes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import PlanError, PlanNotFoundError
from qgraph.plan import described
from qgraph.plan.decode import decode
from qgraph.plan.fitted import mark, resolve
from qgraph.plan.units import multiples
from qgraph.plan.widths import MAX_BITS as MAX_BITS
from qgraph.plan.widths import MIN_BITS as MIN_BITS
from qgraph.running.files import write_atomically
from qgraph.running.views import drawn_by
from qgraph.running.wording import command
from qgraph.samples.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 2
PER_TENSOR = qmath.Granularity()
_LEAST_SCALE, _LARGEST_SCALE = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32: what files hold
MAX_SHIFTED_BITS = 7  # the widest weights for which code - zero_point fits int8
_ROLES = ("tensor", "operand")
Runs = Literal["integers", "floats", "dynamic", "blocks"]
Even = Literal["", "taps", "sums", "means"]
_NUMBERS = re.compile(r"\[\n([-+.\deE,\s]*)\]")  # lists of numbers are written on one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Q-Rater's rounding scheme, used instead of rounding to nearest (`qmath.rounding_table`).

    `gamma_n` in [-1, 1] and `gamma_s` in [0, 1] are the parameters of Eq. 6, in the given `reading` of it; without
    `gamma_s` the scheme is the first-order one of Eq. 4. With `subdivision` k > 0, a value is first rounded to the
    nearest k-th of a step, so that its code can be looked up by an integer; 0 keeps the exact thresholds.
    """

    gamma_n: float
    gamma_s: float | None = None
    reading: Literal["distance", "printed"] = "distance"
    subdivision: int = 0

    def __post_init__(self) -> None:
        if not -1 <= self.gamma_n <= 1:
            raise PlanError(f"gamma_n of a rounding must lie in -1..1, not {self.gamma_n}")
        if self.gamma_s is not None and not 0 <= self.gamma_s <= 1:
            raise PlanError(f"gamma_s of a rounding must lie in 0..1, not {self.gamma_s}")
        if self.subdivision < 0:
            raise PlanError(f"the subdivision of a rounding must not be negative, it is {self.subdivision}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WeightQuant:
    """The grid of a weight: value = gain * scale * (code - zero_point) / input_scale + shift.

    `granularity` says what shares a scale: the tensor, each channel along an axis, or each group of neighbours along
    an axis. `scale`, `zero_point` and `gain` hold one number for all, or one for each in the order of
    `qmath.Granularity`.

    Codes are round(w / scale) + zero_point, half to even, clamped to the signed range of `bits`, without its lowest
    code if `symmetric`. `gain` rescales after rounding (the norm correction of ACIQ, Eq. 12). A symmetric grid may have
    a `rounding` of its own. Codes that no rounding of single weights finds are in the plan: `codes`, as text
    (`qgraph.plan.held_codes`); they hold for this grid alone.

    `shift` is added to every weight of a channel (the mean correction of ACIQ, Eq. 13): one number for each scale, or
    none. It is a fraction of a step, so that only simulations hold it.

    `channel_bits` are the widths of the channels where they differ. The channels share a quota that `bits` for each
    would give, of bins or of bits, except rows of a table, which have `bits` at least. `input_scale` multiplies the
    weight before it is rounded, one factor per input channel: the `channel_scale` of the operand, which the stored
    codes then contain. A dynamic layer divides its operand by these factors itself; a channel with factor 0 it
    multiplies in floats, and its codes are zero.

    `even` says which errors of weights cancel, as far as codes next to the nearest allow (`qmath.round_evenly`): those
    of the `taps` of each kernel, the `sums` of whole channels as well, or sums weighted by the `means` of the inputs.
    `input_mean` and `input_spread` are what was likely of each input channel before any sample was seen.

    With a `unit` per channel, the scale of each of its groups is a whole multiple of it. Integer kernels, which have
    one scale per channel, then get codes times multiples.

    `fitted` is written to files (`qgraph.plan.fitted`), and read from one whose bits were edited without their scale:
    such a grid waits to be fitted to its weight.
    """

    bits: int
    scale: tuple[float, ...]
    zero_point: tuple[int, ...] = (0,)
    gain: tuple[float, ...] = (1.0,)
    granularity: qmath.Granularity = PER_TENSOR
    symmetric: bool = True
    rounding: Rounding | None = None
    channel_bits: tuple[int, ...] = ()
    input_scale: tuple[float, ...] = ()
    unit: tuple[float, ...] = ()
    codes: str = ""
    shift: tuple[float, ...] = ()
    even: Even = ""
    input_mean: tuple[float, ...] = ()
    input_spread: tuple[float, ...] = ()
    fitted: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        _check_scale(self.scale)
        _check_scale(self.gain)
        _check_scale(self.unit or (1.0,))
        if (self.unit and (self.multiples < 1).any()) or len(self.unit) * (len(self.gain) - 1):
            raise PlanError("a weight grid with units has one gain, and steps of at least one unit")
        _check_scale(tuple(factor for factor in self.input_scale if factor) or (1.0,))
        if self.rounding is not None and (not self.symmetric or self.rounding.subdivision):
            raise PlanError("a weight grid with a rounding is symmetric, and its rounding has no subdivision")
        if self.rounding is not None and (self.channel_bits or self.codes or self.even):
            raise PlanError("a weight grid with a rounding has one width for all channels, no codes, and is not even")
        if not all(map(math.isfinite, (*self.input_mean, *self.input_spread))) or min(self.input_spread, default=0) < 0:
            raise PlanError("what is likely of inputs are finite means, and spreads of at least 0")
        if self.even and self.granularity.axis is None:
            raise PlanError("a weight grid is even along channels, and this one has none")
        if self.symmetric and any(self.zero_point):
            raise PlanError("a symmetric weight grid has zero_point 0")
        if self.shift and (len(self.shift) != len(self.scale) or not all(map(math.isfinite, self.shift)) or self.unit):
            raise PlanError(f"a weight grid has a finite shift for each of its {len(self.scale)} scales, or none")
        if self.granularity.axis is None and len(self.scale) != 1:
            raise PlanError(f"a weight grid without axis has one scale, not {len(self.scale)}")
        for bits in self.channel_bits:
            _check_bits(bits)
        if self.channel_bits and self.granularity.group is not None:
            raise PlanError(f"channel_bits are the widths of channels: a grid {self.granularity} has one width")
        if self.channel_bits and len(self.channel_bits) != len(self.scale):
            raise PlanError(f"{len(self.channel_bits)} channel_bits need as many scales, not {len(self.scale)}")
        for zero_point, (low, high) in {*zip(self.zero_point, itertools.cycle(self.limits), strict=False)}:
            if not low <= zero_point <= high:
                raise PlanError(f"zero points of a weight must lie in {low}..{high}, not {zero_point}")

    def __repr__(self) -> str:
        return described.weight_line(self)

    @property
    def multiples(self) -> NDArray[np.int64]:
        """With units, how many of them the step of each group has: groups x channels along axis 0, else transposed."""
        return multiples(self.scale, self.unit, self.granularity)

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels, across its groups if it has any; None where there is one scale."""
        axis = self.granularity.axis
        return axis if axis is None or self.granularity.group is None else int(axis == 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """The bits of every channel, or one number for all."""
        return self.channel_bits or (self.bits,)

    @property
    def limits(self) -> tuple[tuple[int, int], ...]:
        """The lowest and highest code of every channel, or one pair for all."""
        return tuple((self.symmetric - 2 ** (bits - 1), 2 ** (bits - 1) - 1) for bits in self.widths)

    @property
    def qmin(self) -> int:
        """The lowest code of any channel."""
        return min(low for low, _ in self.limits)

    @property
    def qmax(self) -> int:
        """The highest code of any channel."""
        return max(high for _, high in self.limits)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ActivationQuant:
    """The grid of an activation: value = scale * (code - zero_point) + offset, codes 0 .. qmax in uint8.

    `offset` is the real-valued shift of LSQ+ (Eq. 1), in the units of the tensor; the exported graph folds it into the
    bias of layers that read the tensor without padding it (Eq. 5).

    `role` says who reads the tensor on this grid: `tensor`, every consumer; `operand`, only layers, on top of a
    `tensor` grid if there is one. A `symmetric` grid has 2^(bits-1) - 1 codes on either side of its zero point. A grid
    with a `rounding` is symmetric or starts at zero.

    With `channel_scale`, channel c along axis 1 has the step scale * channel_scale[c]; with `channel_bits`, its codes
    run from 0 to 2^channel_bits[c] - 1, and the channels share the quota of bins of `bits`. In a deployed file, these
    factors are part of the weights on both sides of the tensor (`WeightQuant.input_scale`).

    `fitted` is of files alone, as in `WeightQuant`.
    """

    tensor: str
    bits: int
    scale: float
    zero_point: int = 0
    role: Literal["tensor", "operand"] = "tensor"
    offset: float = 0.0
    symmetric: bool = False
    rounding: Rounding | None = None
    channel_scale: tuple[float, ...] = ()
    channel_bits: tuple[int, ...] = ()
    fitted: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        _check_scale((self.scale,))
        _check_scale(self.channel_scale or (1.0,))
        for bits in self.channel_bits:
            _check_bits(bits)
        if self.channel_bits and len(self.channel_bits) != len(self.channel_scale):
            raise PlanError(
                f"'{self.tensor}' has {len(self.channel_bits)} channel_bits and {len(self.channel_scale)} "
                f"channel_scale: as many of both expected"
            )
        if self.channel_scale and (self.symmetric or self.rounding is not None or self.offset):
            raise PlanError(f"a grid with channel_scale has no offset, rounding or signed codes: see '{self.tensor}'")
        middle = 2 ** (self.bits - 1) - 1
        if self.symmetric and self.zero_point != middle:
            raise PlanError(f"a symmetric grid of {self.bits} bits has zero_point {middle}: see '{self.tensor}'")
        if self.rounding is not None and self.zero_point and not self.symmetric:
            raise PlanError(f"a grid with a rounding is symmetric or has zero_point 0: see '{self.tensor}'")
        if self.rounding is not None and self.offset:
            raise PlanError(f"a grid with a rounding has no offset: see '{self.tensor}'")
        if self.rounding is not None and self.qmax * self.rounding.subdivision > 255:
            raise PlanError(f"a subdivision fits 8 bits, {255 // self.qmax} at most for '{self.tensor}'")
        if not 0 <= self.zero_point <= min(self.channel_qmax):
            raise PlanError(f"zero_point {self.zero_point} of '{self.tensor}' lies outside 0..{min(self.channel_qmax)}")
        if not math.isfinite(self.offset):
            raise PlanError(f"the offset of '{self.tensor}' must be finite, not {self.offset}")

    def __repr__(self) -> str:
        return described.activation_line(self)

    @property
    def qmax(self) -> int:
        """The highest code of any channel."""
        return max(self.channel_qmax)

    @property
    def channel_qmax(self) -> tuple[int, ...]:
        """The highest code of every channel, or one number for all."""
        return tuple(2**bits - 1 - self.symmetric for bits in self.channel_bits or (self.bits,))

    @property
    def low(self) -> float:
        return self.offset - self.zero_point * self.scale

    @property
    def high(self) -> float:
        return self.offset + (self.qmax - self.zero_point) * self.scale


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LayerQuant:
    """How one layer is quantized: the grid of its weight and a shift of its bias (one value per output channel).

    `runs` says what the kernel computes on. A layer that runs in `floats` still has its weight on the grid: it is
    stored in few bits and turned into floats once, when the file is loaded. One that is `dynamic` multiplies integers
    and computes the 8-bit grid of its operand in every run, from the smallest to the largest value, so that the plan
    holds none. One that runs in `blocks` multiplies floats with packed codes, which stay in memory as they are stored.
    """

    name: str
    op: str
    weight: WeightQuant
    bias_shift: tuple[float, ...] = ()
    runs: Runs = "integers"

    def __repr__(self) -> str:
        return described.layer_line(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFloat:
    """A layer or other operator that stays in floating point, with the reason and the bytes of its constants."""

    name: str
    why: str
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class QuantPlan:
    """What is quantized and how, for the model with the digest `model`.

    `fold_bn` says whether BatchNormalization was folded into layers first, `portable` that files compute the same codes
    on every processor (`qgraph quantize --portable`): biases are then written as integers. `quality` is the verdict on
    the file made from the plan, and `made` says what wrote it: the version of qgraph, the command, and the
    preprocessing of images. Both decide nothing, and plans that differ only in them are equal.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
        >>> plan = qgraph.quantize(network, activations=None, weights=4, measure=False).plan
        >>> plan
        QuantPlan(zeroq: 7 layers, weights of 8 and 4 bits)
        >>> [layer.weight.bits for layer in plan.layers]
        [8, 4, 4, 8, 8, 4, 8]
        >>> qgraph.QuantPlan.from_json(plan.to_json()) == plan
        True
    """

    model: str
    recipe: str
    layers: tuple[LayerQuant, ...] = ()
    activations: tuple[ActivationQuant, ...] = ()
    kept_float: tuple[KeptFloat, ...] = ()
    notes: tuple[str, ...] = ()
    fold_bn: bool = True
    portable: bool = False
    quality: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)
    made: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise PlanError(f"plan schema {self.schema} is not known; this version reads schema 1 and {SCHEMA}")
        _check_unique("layer", [layer.name for layer in self.layers])
        _check_unique("activation", [f"{a.tensor} ({a.role})" for a in self.activations])

    def __repr__(self) -> str:
        return described.plan_line(self)

    def replace(self, *changes: str, **fields: Any) -> QuantPlan:
        """The plan with other bits for some layers, or other values of its fields.

        `changes` are words such as `layer2.*:weights=4`; the last that matches a layer counts. A plan holds no weights,
        so each grid keeps the ends that it has: `Result.whatif` fits them anew, and says what a change costs. `fields`
        are those of the plan, as for `dataclasses.replace`.

        Raises:
            UsageError: A change is not understood, matches no layer, or is one of activations.

        Example:
            >>> from importlib.resources import files
            >>> import qgraph
            >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
            >>> plan = qgraph.quantize(network, activations=None, measure=False).plan
            >>> fewer = plan.replace("*:weights=4", "stem/conv:weights=8")
            >>> qgraph.apply(network, fewer, measure=False).to_proto().ByteSize() < network.stat().st_size / 4
            True
        """
        from qgraph.plan.by_name import with_bits

        return dataclasses.replace(with_bits(self, changes) if changes else self, **fields)

    @property
    def preprocessing(self) -> Preprocessing:
        """The normalisation of the images that the plan was made with, as `made` says."""
        kept = (self.made or {}).get("preprocessing") or {}
        try:
            return Preprocessing(**{name: tuple(map(float, values)) for name, values in kept.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise PlanError(f"made.preprocessing holds a mean and a std, each a list of numbers: {error}") from None

    def layer(self, name: str) -> LayerQuant | None:
        """The grids of the layer with this name; None if it stays in floating point."""
        return next((layer for layer in self.layers if layer.name == name), None)

    @property
    def by_reach(self) -> tuple[ActivationQuant, ...]:
        """The activation grids in the order in which they take effect.

        Grids that every consumer reads come first, then those on top of them that only layers read. Of two grids of a
        tensor, layers read the later one.
        """
        return tuple(sorted(self.activations, key=lambda grid: _ROLES.index(grid.role)))

    @property
    def operand_grids(self) -> Mapping[str, ActivationQuant]:
        """The grid on which layers read each tensor, by the tensor's name."""
        return {grid.tensor: grid for grid in self.by_reach}

    def map_layers(self, change: Callable[[LayerQuant], LayerQuant]) -> QuantPlan:
        """The plan with every layer changed by a function.

        Example:
            >>> import dataclasses
            >>> import qgraph
            >>> from qgraph.plan.plan import LayerQuant, WeightQuant
            >>> layer = LayerQuant(name="fc", op="Gemm", weight=WeightQuant(bits=8, scale=(0.1,)))
            >>> plan = qgraph.QuantPlan(model="digest", recipe="by hand", layers=(layer,))
            >>> in_floats = plan.map_layers(lambda layer: dataclasses.replace(layer, runs="floats"))
            >>> in_floats.layer("fc").runs
            'floats'
        """
        return dataclasses.replace(self, layers=tuple(map(change, self.layers)))

    def map_activations(self, change: Callable[[ActivationQuant], ActivationQuant]) -> QuantPlan:
        """The plan with every activation grid changed by a function."""
        return dataclasses.replace(self, activations=tuple(map(change, self.activations)))

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal plan (floats by repr).

        Example:
            >>> import qgraph
            >>> plan = qgraph.QuantPlan(model="digest", recipe="by hand", notes=("nothing to do",))
            >>> qgraph.QuantPlan.from_json(plan.to_json()) == plan
            True
        """
        content = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("quality", "made") or v is not None}
        for grid in [*(layer["weight"] for layer in content["layers"]), *content["activations"]]:
            grid["fitted"] = grid["fitted"] or mark(grid["bits"], grid["scale"])
        text = json.dumps(content, indent=1)
        return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "the plan") -> QuantPlan:
        """The plan in a JSON text of this schema or an earlier one.

        Raises `PlanError`, which names the field, for anything that is not a plan.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"{source} is not JSON: line {error.lineno}: {error.msg}") from None
        except RecursionError:
            raise PlanError(f"{source} is no plan: its brackets are nested too deeply") from None
        except ValueError as error:  # a number of thousands of digits
            raise PlanError(f"{source} is no plan: {error}") from None
        try:
            plan = decode(cls, _of_this_schema(raw), "plan")
        except PlanError as error:
            raise PlanError(f"{source}: {error}") from None
        return typing.cast(QuantPlan, plan)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QuantPlan:
        """The plan in a file that `qgraph quantize --plan` wrote.

        Raises `PlanError` when it cannot be read or is not a plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise PlanNotFoundError(f"cannot read the plan {path}: No such file or directory") from None
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan {path}: {getattr(error, 'strerror', None) or error}") from None
        return cls.from_json(text, source=str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file that `load` and `qgraph apply` read, whole or not at all.

        Example:
            >>> import qgraph
            >>> plan = qgraph.QuantPlan(model="digest", recipe="by hand")
            >>> plan.save("plan.json")
            >>> qgraph.QuantPlan.load("plan.json") == plan
            True
        """
        write_atomically(Path(path), self.to_json().encode())

    def to_frame(self) -> DataFrame:
        """The quantized layers as a pandas data frame: bits, granularity, and the ends of scales. Needs pandas."""
        return drawn_by("frames").plan_frame(self)

    def check_model(self, digest: str, source: str) -> None:
        """Raise `PlanError` unless the plan was made for the model with this digest."""
        if digest != self.model:
            raise PlanError(
                f"the plan was made for another model: it names {self.model[:12]}..., {source} is {digest[:12]}...; "
                f"make a plan for this model with {command('qgraph quantize --plan', 'qgraph.quantize')}"
            )


def _of_this_schema(raw: Any) -> Any:
    """Parsed JSON in this schema. In schema 1 the grid of a weight had an `axis`, and there were no groups."""
    if isinstance(raw, dict):
        resolve(raw)
    if not isinstance(raw, dict) or raw.get("schema", 1) != 1 or not isinstance(raw.get("layers", []), list):
        return raw
    for layer in raw.get("layers", []):
        weight = layer.get("weight") if isinstance(layer, dict) else None
        if isinstance(weight, dict) and "axis" in weight:
            weight["granularity"] = {"axis": weight.pop("axis")}
    return raw | {"schema": SCHEMA}


def _check_unique(kind: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise PlanError(f"the plan lists {kind} '{name}' more than once")
        seen.add(name)


def _check_bits(bits: int) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise PlanError(f"bits must lie in {MIN_BITS}..{MAX_BITS}, not {bits}")


def _check_scale(scale: tuple[float, ...]) -> None:
    array = np.asarray(scale, np.float64)
    wrong = array[~((array >= _LEAST_SCALE) & (array <= _LARGEST_SCALE))]
    if wrong.size or not scale:
        raise PlanError(f"every scale must be positive and finite in float32, not {wrong[0] if wrong.size else scale}")
