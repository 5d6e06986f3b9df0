"""Samples that are held out of a job, to judge its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.samples.dataset import Dataset
from qgraph.samples.read import length

SHARE, MOST = 8, 64  # one sample in SHARE is held out, at most MOST
CALIBRATING = 512  # samples to calibrate on when the others are used to choose
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Samples to work with and samples to judge by; `apart` tells whether no sample is in both."""

    used: Dataset
    held_out: Dataset
    apart: bool


def hold_out(samples: Dataset, *, share: int = SHARE, most: int = MOST) -> Split:
    """Hold out one sample in `share`, at most `most`, spread over the data; always the same ones.

    Data given in many batches lose whole batches, since a model may need them as they are. With fewer than `share`
    samples, all of them are on both sides.
    """
    if samples.count < share:
        return Split(used=samples, held_out=samples, apart=False)
    chosen = _whole_parts(samples, share, most) or spread(samples.count, min(most, samples.count // share))
    held = set(chosen)
    rest = [p for p in range(samples.count) if p not in held]
    return Split(used=samples.choose(rest), held_out=samples.choose(chosen), apart=True)


def calibrating(samples: Dataset, *, most: int = CALIBRATING) -> tuple[Dataset, Dataset]:
    """Half of the samples to calibrate on, at most `most`, and the others to choose by; all for both if few."""
    if samples.count < SHARE:
        return samples, samples
    chosen = spread(samples.count, min(samples.count // 2, most))
    held = set(chosen)
    return samples.choose(chosen), samples.choose(p for p in range(samples.count) if p not in held)


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` positions, one in every stretch of equal length, at varying places within it.

    The places follow multiples of the golden ratio, so that periodic data are not always sampled at the same phase.
    """
    ends = np.arange(wanted + 1) * count // wanted
    inside = np.arange(1, wanted + 1) * _GOLDEN % 1
    return [int(p) for p in ends[:-1] + np.floor(inside * np.diff(ends)).astype(int)]


def _whole_parts(samples: Dataset, share: int, most: int) -> Sequence[int]:
    """Positions of whole batches, if there are enough of more than one sample and none is too large."""
    sizes = [length(part) for part in samples.parts]
    if samples.rows is not None or samples.limit is not None or len(sizes) < share or not 1 < max(sizes) <= most:
        return ()
    starts = np.cumsum([0, *sizes])
    parts = spread(len(sizes), max(1, min(len(sizes) // share, most // max(sizes))))
    return [int(p) for part in parts for p in range(starts[part], starts[part + 1])]
