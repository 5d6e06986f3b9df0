"""How blocks are reconstructed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qgraph.errors import UsageError
from qgraph.plan.words import Effort

MEMORY = 2 << 30  # bytes of activations that are held between two blocks, about
STEPS: dict[Effort, int] = {"fast": 40, "default": 200, "best": 400}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructConfig:
    """How the roundings, grids and biases of a block are learned.

    * `steps` of `batch` samples for every block, computed in shards of `shard`; `samples` are the most that are used.
      Images larger than `crop` along a side are cut to that, where a block has only convolutions and the like.
    * `drop`: the share of values whose rounding is dropped in a step (QDrop); the same share of what enters the block
      comes from the float network.
    * `reach`: how far a weight of up to 4 bits may move in all, in codes. Few steps average little noise out of
      gradients, and codes that walk farther end worse. With each bit more it is 3.56 times as many codes, so that
      weights of 8 bits, whose rounding matters little, can make up for the noise of activations.
    * `softness`: how much of its distance from the float weight a code starts with. `hardness` is the last of
      `qmath.soft_round`, before codes are fixed; `settle` is the share of steps after that, for grids and biases alone.
    * `adaround`: above zero, codes settle by the stretched sigmoid and the regulariser of AdaRound instead, whose whole
      weighs at most so many times the loss (`qgraph.methods.reconstruct.adaround`), to compare with.
    * `rate` of scales (relative) and of biases (relative to their root mean square); `shift_rate` of zero points, in
      codes.
    """

    steps: int = STEPS["default"]
    batch: int = 32
    shard: int = 16
    samples: int = 1024
    crop: int = 32
    crops: int = 4
    drop: float = 0.5
    reach: float = 0.3
    softness: float = 0.5
    hardness: float = 12.0
    settle: float = 0.1
    adaround: float = 0.0
    rate: float = 5e-3
    shift_rate: float = 2e-2

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "shard", "samples", "crop"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of a reconstruction must be at least 1, not {getattr(self, name)}")
        for name in ("drop", "softness", "settle"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} of a reconstruction must lie in 0..1, below 1, not {getattr(self, name)}")

    def fitting(self, count: int) -> ReconstructConfig:
        """The same for so many samples: no shard is larger than that, and a batch consists of whole shards.

        Example:
            >>> ReconstructConfig(batch=40, shard=16).fitting(100).batch
            32
        """
        shard = min(self.shard, self.batch, count)
        return replace(self, shard=shard, batch=min(self.batch, count) // shard * shard)
