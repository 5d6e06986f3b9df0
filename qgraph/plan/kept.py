"""List what a plan leaves in floating point, with reason and size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping

from qgraph.graph.constants import WORTH_NAMING, float_bytes, reasons
from qgraph.graph.sites import GraphView
from qgraph.plan.plan import KeptFloat


def kept_in_float(
    view: GraphView, why: Mapping[str, str], quantized: Container[str], *, tail: bool = True
) -> tuple[KeptFloat, ...]:
    """One entry for every node in `why`, and for every other node that holds large float constants.

    The weights of `quantized` layers do not count as float constants. With `tail`, operators behind the last layers are
    listed too, one entry per type.
    """
    sizes = float_bytes(view.paths, without=quantized)
    named = [KeptFloat(name=name, why=reason, bytes=sizes.pop(name, 0)) for name, reason in sorted(why.items())]
    behind = _tail(view, sizes) if tail else []
    known = reasons(view.paths)
    other = [
        KeptFloat(name=name, why=known.get(name, "its weight is not quantized"), bytes=size)
        for name, size in sizes.items()
        if size >= WORTH_NAMING
    ]
    return (*named, *behind, *other)


def _tail(view: GraphView, sizes: dict[str, int]) -> list[KeptFloat]:
    """One entry for each operator type behind the last layers; takes their constants out of `sizes`."""
    counts = Counter(node.op_type for node in view.tail)
    first = {node.op_type: str(node.name) for node in reversed(view.tail)}
    held: Counter[str] = Counter()
    for node in view.tail:
        held[node.op_type] += sizes.pop(str(node.name), 0)
    return [
        KeptFloat(
            name=first[op] + (f" and {count - 1} more {op}" if count > 1 else ""),
            why="post-processing behind the last layers: wide ranges, little work",
            bytes=held[op],
        )
        for op, count in counts.items()
    ]
