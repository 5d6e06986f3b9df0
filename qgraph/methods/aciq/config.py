"""The settings of ACIQ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from qgraph.errors import UsageError
from qgraph.plan.words import TargetCpu

Allocation = Literal["none", "weights", "activations", "both"]
Prior = Literal["checked", "fit", "laplace", "gaussian"]
Means = Literal["inputs", "weights", "none"]
Quota = Literal["bins", "bits"]


_ELSEWHERE = {"set": False}  # fields that an option of the recipe, or the job, decides


@dataclass(frozen=True, slots=True, kw_only=True)
class AciqConfig:
    """Which ingredients of ACIQ to use, and how.

    Options of the recipe: `clip` and `weight_clip` are names from `qmath.clip_methods()`; `allocate_bits` says whose
    channels get bits of their own; for the `target_cpu` "any", weights are kept from saturating 16 bits
    (`without_saturation`). With `deployable`, activations have a step per channel only where the weights around them
    can carry the factors.

    Hyper-parameters (`--set aciq.FIELD=VALUE`):

    * `prior`: the law of activations: `laplace`, `gaussian`, or the one whose range has the smaller error (`fit`);
      `checked` does as `fit`, but takes the range of least squared error where that of the law is over 0.25 dB worse.
      `percentile`: the share in percent of values that the clip method "percentile" keeps, at either end.
    * `means`: how the mean of rounded weights is corrected (Eq. 12): `inputs` adds the expected change of the output to
      the bias, `weights` adds a constant to every weight as in the paper, which only the format `float` can hold.
    * `quota`: what the channels of a weight share: `bins`, the paper's, for which bins grow with range^(2/3) (Eq. 10),
      or `bits`, the memory, for which they grow with the range.
    * `channel_activations`: a step per channel of activations even where their bits are all the same.

    Raises:
        UsageError: `percentile` is out of range.
    """

    clip: str = field(default="aciq", metadata=_ELSEWHERE)
    weight_clip: str = field(default="mse", metadata=_ELSEWHERE)
    bias_correction: bool = field(default=True, metadata=_ELSEWHERE)
    allocate_bits: Allocation = field(default="none", metadata=_ELSEWHERE)
    deployable: bool = field(default=True, metadata=_ELSEWHERE)
    target_cpu: TargetCpu = field(default="any", metadata=_ELSEWHERE)
    prior: Prior = "checked"
    percentile: float = 99.99
    means: Means = "inputs"
    quota: Quota = "bits"
    channel_activations: bool = False

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise UsageError(f"aciq.percentile must lie above 50, and at 100 at most, not {self.percentile}")

    @property
    def clip_options(self) -> dict[str, Any]:
        """What the clip method of activations is told besides bits and sides."""
        if self.clip == "aciq" and self.prior != "checked":
            return {"family": None if self.prior == "fit" else self.prior}
        return {"percentile": self.percentile} if self.clip == "percentile" else {}

    @property
    def weight_options(self) -> dict[str, Any]:
        """The same for the clip method of weights."""
        return {"percentile": self.percentile} if self.weight_clip == "percentile" else {}
