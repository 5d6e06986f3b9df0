"""What the scale of a grid in a plan file was fitted for, so that bits that were edited without it are noticed.

A file holds with each grid its bits and a checksum of its scale, such as `8 bits, 1d8fa105`. Where the bits of a grid
are others and the scale is still the same, its bits were edited alone; where both are others, somebody chose a scale.
"""

from __future__ import annotations

import re
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qgraph.errors import QualityWarning
from qgraph.plan.widths import MAX_BITS, MIN_BITS

_MARK = re.compile(r"(\d) bits, ([0-9a-f]{8})")
_OF_THE_BITS = ("zero_point", "gain", "rounding", "channel_bits", "codes", "shift")  # of a weight: what goes with them


def mark(bits: int, scale: ArrayLike) -> str:
    """The bits and the CRC-32 of the scale, as float64, of a grid whose scale belongs to its bits.

    Example:
        >>> from qgraph.plan.fitted import mark
        >>> mark(8, [0.5, 0.25])
        '8 bits, 1d8fa105'
    """
    return f"{bits} bits, {zlib.crc32(np.asarray(scale, '<f8').tobytes()):08x}"


def bits_of(fitted: str) -> int:
    """The bits in a mark."""
    return int(fitted[0])


def resolve(raw: dict[str, Any]) -> None:
    """Keep in parsed JSON only the marks of weights whose bits were edited alone.

    Such a weight waits for its model, which its scale is fitted to (`qgraph.plan.check`). An activation whose bits were
    edited alone keeps its range, with a warning.
    """
    for layer in _dicts(raw.get("layers")):
        for weight in _dicts([layer.get("weight")]):
            if not _edited_alone(weight):
                weight.pop("fitted", None)
            else:
                for name in _OF_THE_BITS:
                    weight.pop(name, None)
    for grid in _dicts(raw.get("activations")):
        if _edited_alone(grid):
            _keep_range(grid)
        grid.pop("fitted", None)


def _edited_alone(grid: dict[str, Any]) -> bool:
    """Whether the bits are other than in the mark, and the scale is the same."""
    found = _MARK.fullmatch(str(grid.get("fitted", "")))
    bits, scale = grid.get("bits"), grid.get("scale")
    if found is None or type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS or bits == int(found[1]):
        return False
    numbers: list[Any] = scale if isinstance(scale, list) else [scale]
    try:
        return all(type(x) in (int, float) for x in numbers) and mark(int(found[1]), numbers) == found[0]
    except OverflowError:  # an integer beyond every float, which decoding refuses
        return False


def _keep_range(grid: dict[str, Any]) -> None:
    """Give a grid of activations the step and the zero point that leave its ends where they were."""
    old, new, half = bits_of(grid["fitted"]), grid["bits"], bool(grid.get("symmetric", False))
    before, after = 2**old - 1 - half, 2**new - 1 - half
    zero_point = grid.get("zero_point", 0)
    grid["scale"] = float(np.float32(grid["scale"] * before / after))
    if type(zero_point) is int:
        grid["zero_point"] = round(zero_point * after / before)
    warnings.warn(
        f"the bits of tensor '{grid.get('tensor')}' were changed from {old} to {new} without its scale: the scale is "
        f"fitted again, to the range that it had",
        QualityWarning,
        stacklevel=2,
    )


def _dicts(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
