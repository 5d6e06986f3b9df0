"""The instructions that the processor supports."""

from __future__ import annotations

import re
from pathlib import Path


def has_fast_integers() -> bool | None:
    """Whether this CPU multiplies int8 faster than float32 (VNNI on x86-64, dot products on ARM); None if unknown."""
    flags = cpu_flags()
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}) if flags else None


def cpu_flags() -> frozenset[str]:
    """The feature flags of this CPU (on Linux); empty where they cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()
