"""Shorten long names in the middle, so that different names stay different."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

GAP = "…"
_PARTS = re.compile(r"[/;]")
_TAILS = (2 / 3, 1 / 2, 1 / 3, 1.0)  # the share of a shortened name that its end takes; what tells names apart is there


def shortened(names: Iterable[str], width: int) -> dict[str, str]:
    """Each name in at most `width` characters if that keeps them all different, else in as few more as it takes.

    Names of converted models repeat their scope in front and their operator at the end. What is left out is the same
    share of all long names; where two would look alike, another share; and where they still would, the parts of the
    names that most others have too.

    Example:
        >>> names = ["StatefulPartitionedCall/model/block_1/Conv2D", "StatefulPartitionedCall/model/block_12/Conv2D"]
        >>> list(shortened(names, 24).values())
        ['Stateful…/block_1/Conv2D', 'Stateful…block_12/Conv2D']
    """
    unique = list(dict.fromkeys(names))
    longest = max(map(len, unique), default=0)
    alike = _shared([name for name in unique if len(name) > width], width)
    counts = Counter(part for name in unique for part in set(_PARTS.split(name)))
    for allowed in range(max(width, 3), longest):
        ways = [partial(_cut, width=allowed, share=share) for share in _TAILS]
        ways += [partial(_telling, width=allowed, counts=counts), partial(_window, width=allowed, start=alike)]
        for way in ways:
            short = {name: way(name) for name in unique}
            if len(set(short.values())) == len(unique):
                return short
    return {name: name for name in unique}


def _cut(name: str, *, width: int, share: float) -> str:
    if len(name) <= width:
        return name
    tail = round(share * (width - 1))
    return name[: width - 1 - tail] + GAP + name[len(name) - tail :]


def _shared(names: Sequence[str], width: int) -> int:
    """Where names begin to differ, or their word there begins, if it is near."""
    differs = (index for index, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1)
    place = next(differs, min(map(len, names), default=0))
    word = len(re.split(r"[/.:]", names[0][:place])[-1]) if names else 0
    return place - word if word <= width // 2 else place


def _window(name: str, *, width: int, start: int) -> str:
    """What stands behind the beginning that names share, without their end."""
    if len(name) <= width:
        return name
    return GAP + name[start : start + width - 2] + GAP


def _telling(name: str, *, width: int, counts: Counter[str]) -> str:
    """The parts of a name that fewest others have."""
    parts: list[str] = _PARTS.split(name)
    for part in sorted(parts, key=lambda part: -counts[part]):  # stable: of equally common ones the first goes first
        if len(_joined(parts)) <= width:
            break
        parts[parts.index(part)] = GAP
    return _cut(_joined(parts), width=width, share=_TAILS[0])


def _joined(parts: Iterable[str]) -> str:
    """Parts with slashes between them, and one gap for those that are left out together."""
    return re.sub(f"/?{GAP}(/{GAP})*/?", GAP, "/".join(parts))
