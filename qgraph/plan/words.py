"""Words that options take, where a command line needs them before anything else is imported."""

from __future__ import annotations

PROTOCOLS = ("deploy", "paper")
