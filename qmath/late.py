"""Modules that take long to import and are seldom used."""

from __future__ import annotations

import importlib
import types
from typing import Any


class LateModule(types.ModuleType):
    """Stands for the module of this name, which is imported when one of its names is first used.

    Example:
        >>> import sys
        >>> from qmath.late import LateModule
        >>> colours = LateModule("colorsys")
        >>> colours.rgb_to_hsv(0.0, 0.0, 0.0)
        (0.0, 0.0, 0.0)
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
