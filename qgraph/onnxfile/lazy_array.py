"""Arrays to be written to a file: in memory, or computed when they are written.

The weights of a model that is too large for memory stay mapped from their file. What is made of them is computed one
tensor at a time while the output is written, and then released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """An array of this shape and type that `make` computes: at once, or when it is written if it is `deferred`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], NDArray[Any]]
    deferred: bool

    @classmethod
    def of(cls, source: ir.Value, make: Callable[[], NDArray[Any]], dtype: type[np.generic]) -> Later:
        """What `make` computes from a constant, in its shape; deferred if the constant is mapped from a file."""
        tensor = source.const_value
        shape = () if tensor is None else tuple(tensor.shape.numpy())
        return _later(shape, np.dtype(dtype), make, deferred=isinstance(tensor, ir.ExternalTensor))

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def map(
        self, function: Callable[[NDArray[Any]], NDArray[Any]], shape: tuple[int, ...], dtype: type[np.generic]
    ) -> Later:
        """The result of a function of this array."""
        return _later(shape, np.dtype(dtype), lambda: function(self.make()), deferred=self.deferred)

    def tensor(self, name: str) -> ir.TensorProtocol:
        """The array as a tensor; a deferred one is computed anew each time its content is read."""
        if not self.deferred:
            return ir.tensor(self.make(), name=name)
        kind, shape = ir.DataType.from_numpy(self.dtype), ir.Shape(self.shape)
        return ir.LazyTensor(lambda: ir.tensor(self.make(), name=name), dtype=kind, shape=shape, name=name)


def _later(shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], NDArray[Any]], *, deferred: bool) -> Later:
    if not deferred:
        array = make()
        return Later(shape=shape, dtype=dtype, make=lambda: array, deferred=False)
    return Later(shape=shape, dtype=dtype, make=make, deferred=True)
