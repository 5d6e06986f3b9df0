"""Reachability: what depends on a tensor, and what a tensor depends on."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


def reaches(value: ir.Value, nodes: dict[ir.Node, str]) -> bool:
    pending, seen = [value], {value}
    while pending:
        for use in pending.pop().uses():
            if use.node in nodes:
                return True
            fresh = [v for v in use.node.outputs if v not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return False


def descendants(values: Iterable[ir.Value]) -> set[ir.Node]:
    """All nodes that depend on any of the values."""
    found: set[ir.Node] = set()
    pending = list(values)
    while pending:
        for use in pending.pop().uses():
            if use.node not in found:
                found.add(use.node)
                pending.extend(use.node.outputs)
    return found
