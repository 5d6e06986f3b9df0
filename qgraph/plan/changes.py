"""Other bits for single layers, in words: `PATTERN:weights=3`, `PATTERN:activations=6`, with globs for their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from qgraph.errors import UsageError, hint
from qgraph.plan.widths import MAX_BITS, MIN_BITS

What = Literal["weights", "activations"]
FORM = "PATTERN:weights=N or PATTERN:activations=N, such as 'layer2.*:weights=4' (hyper-parameters: METHOD.FIELD=V)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Other bits for the weights, or for what they are multiplied with, of the layers whose names match a glob."""

    pattern: str
    what: What
    bits: int

    @classmethod
    def parse(cls, text: str) -> Change:
        """A change such as `layer2.*:weights=4`; raises `UsageError` for anything else."""
        found = re.fullmatch(r"(.+):(weights|activations)=(\d+)", text.strip())
        if found is None or not MIN_BITS <= int(found[3]) <= MAX_BITS:
            raise UsageError(f"'{text}' is not of the form {FORM}, with N from {MIN_BITS} to {MAX_BITS}")
        return cls(pattern=found[1], what="weights" if found[2] == "weights" else "activations", bits=int(found[3]))


def per_layer(text: str, what: What = "weights") -> tuple[str, ...]:
    """The changes in `head.*=8,*=4`, of which the first that matches a layer counts; the last one stands last."""
    parts = [part.strip().rpartition("=") for part in text.split(",")]
    return tuple(f"{pattern}:{what}={bits}" for pattern, _, bits in reversed(parts))


def parsed(texts: Sequence[str]) -> tuple[Change, ...]:
    return tuple(map(Change.parse, texts))


def bits_for(changes: Sequence[Change], name: str, what: What) -> int | None:
    """The bits of the last change that matches; None if none does."""
    return next((c.bits for c in reversed(changes) if c.what == what and fnmatchcase(name, c.pattern)), None)


def check_patterns(changes: Sequence[Change], names: Sequence[str]) -> None:
    """Raise `UsageError` for a pattern that matches no layer."""
    for change in changes:
        if not any(fnmatchcase(name, change.pattern) for name in names):
            raise UsageError(
                f"'{change.pattern}' matches no layer{hint(change.pattern, list(names))}; qgraph inspect lists them"
            )
