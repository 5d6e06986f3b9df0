"""The learning rate of distillation at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qgraph.methods.zeroq.config import DistillConfig

_FACTOR = 0.1
_THRESHOLD = 1e-4  # an improvement is relative to the least loss so far, as in the schedule that the authors use


def rate_after(losses: Sequence[float], config: DistillConfig) -> float:
    """The rate of the step after these losses.

    cosine: rate (1 + cos(pi step / steps)) / 2. plateau: a tenth of the rate before, at least `floor`, whenever the
    loss has not fallen below its least value for more than `patience` steps; the count then starts anew.

    Example:
        >>> from qgraph.methods.zeroq.config import DistillConfig
        >>> from qgraph.methods.zeroq.rates import rate_after
        >>> rate_after([2.0, 1.0, 1.0, 1.0], DistillConfig(rate=0.5, decay="plateau", patience=1))
        0.05
    """
    if config.decay == "cosine":
        return config.rate * 0.5 * (1 + math.cos(math.pi * len(losses) / config.steps))
    rate, least, in_vain = config.rate, math.inf, 0
    for loss in losses:
        if loss < least * (1 - _THRESHOLD):
            least, in_vain = loss, 0
        else:
            in_vain += 1
        if in_vain > config.patience:
            rate, in_vain = max(rate * _FACTOR, config.floor), 0
    return rate
