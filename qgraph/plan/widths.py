"""The bits that a grid of a plan may have."""

from __future__ import annotations

MIN_BITS, MAX_BITS = 2, 8
