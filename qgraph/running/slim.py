"""Keep SymPy, which takes longer to import than the rest of onnx-ir, out of the way until a symbolic size is computed.

onnx-ir imports SymPy for arithmetic on sizes such as `2 * N`, which no ordinary model needs. While onnx-ir is imported,
stand-ins take the places of SymPy and of the module that parses such sizes; then the places are free again, so that
nobody else sees a stand-in. Where onnx-ir is laid out differently, SymPy is imported at once, as it would be anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from qmath.late import LateModule

SELDOM = ("sympy", "onnx_ir._symbolic_shapes")


class _Slimmer:
    """Finds onnx-ir as Python does, and imports it between stand-ins."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "onnx_ir" else None
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module
            loader.exec_module = lambda module: _between_stand_ins(execute, module)
        return spec


def _between_stand_ins(execute: Any, module: ModuleType) -> None:
    absent = [name for name in SELDOM if name not in sys.modules]
    stand_ins = {name: LateModule(name) for name in absent}
    sys.modules.update(stand_ins)
    try:
        execute(module)
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def slim_onnx_ir() -> None:
    """Keep SymPy from being imported with onnx-ir, if onnx-ir is not imported yet."""
    if not any(isinstance(finder, _Slimmer) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Slimmer())
