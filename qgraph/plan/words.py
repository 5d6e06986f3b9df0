"""Words that options take, where a command line needs them before anything else is imported."""

from __future__ import annotations

from typing import Literal, get_args

PROTOCOLS = ("deploy", "paper")
ROUNDINGS = ("nearest", "second-order", "qrater")
Effort = Literal["fast", "default", "best"]
EFFORTS: tuple[str, ...] = get_args(Effort)
Direction = Literal["forward", "reverse"]  # KL(float || quantized), KL(quantized || float)
DIRECTIONS: tuple[str, ...] = get_args(Direction)
