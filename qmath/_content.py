"""Equality and hashing by content for frozen dataclasses whose fields are arrays."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class ByContent:
    """Base of frozen dataclasses declared with `eq=False`: hashable, and equal when the class and every field are."""

    __slots__ = ()

    def _content(self) -> tuple[object, ...]:
        return tuple(_hashable(getattr(self, field.name)) for field in fields(self) if field.compare)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash((type(self), self._content()))


def frozen(array: ArrayLike, dtype: Any = np.float64) -> NDArray[Any]:
    """A read-only C-contiguous copy, so that later writes to the original do not show, with -0.0 turned into 0.0."""
    copy = np.array(array, dtype=dtype, order="C", copy=True)
    if copy.dtype.kind == "f":
        copy += 0.0
    copy.flags.writeable = False
    return copy


def _hashable(value: object) -> object:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
