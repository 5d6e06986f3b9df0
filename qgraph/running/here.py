"""Where and when something was measured: the processor, the versions of what ran, and the date."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qgraph.version import __version__

_PACKAGES = ("onnxruntime", "onnx", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The processor's name, the versions by package, and the time in ISO 8601 (UTC)."""

    cpu: str
    versions: dict[str, str]
    date: str


def here() -> Here:
    """This machine, now."""
    versions = {"qgraph": __version__, **{name: _version(name) for name in _PACKAGES}}
    return Here(cpu=cpu_name(), versions=versions, date=datetime.now(UTC).isoformat(timespec="seconds"))


def cpu_name() -> str:
    """The processor as its maker calls it (on Linux), else what the platform says."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(\S.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else f"{platform.machine()} {platform.processor()}".strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # onnxruntime has other names, such as onnxruntime-training
        return "unknown"
