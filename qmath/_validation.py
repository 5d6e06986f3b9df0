"""Input checks shared by every module of the package.

Data (`as_data`) keep their floating type, parameters (`as_parameter`) become float64. Both come out as native-endian
arrays. Messages name the argument, what was expected and what was found.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_BITS = 16


def as_data(x: ArrayLike, name: str = "x", *, allow_empty: bool = False) -> NDArray[Any]:
    """`x` as a native float32 or float64 array, without a copy where it is one already.

    float16 and integers of up to 16 bits become float32 (exactly), wider integers and bool float64. Values are not
    inspected: NaN and infinities pass (see `check_finite`). Raises TypeError when `x` does not hold real numbers,
    ValueError when it is empty and `allow_empty` is not set.
    """
    if type(x) is np.ndarray and x.dtype.char in "fd" and x.dtype.isnative:
        array: NDArray[Any] = x
    else:
        array = _real(x, name)
        narrow = array.dtype.kind != "b" and array.dtype.itemsize <= 2
        wanted = np.float32 if narrow or array.dtype.newbyteorder("=") == np.float32 else np.float64
        array = array.astype(wanted, copy=False)
    if array.size == 0 and not allow_empty:
        raise ValueError(f"{name}: expected at least one value, found an empty array of shape {array.shape}")
    return array


def as_parameter(
    value: ArrayLike,
    name: str,
    *,
    positive: bool = False,
    non_negative: bool = False,
    allow_empty: bool = False,
) -> NDArray[np.float64]:
    """`value` as a float64 array of finite numbers, optionally > 0 or >= 0; else TypeError or ValueError."""
    array = _real(value, name).astype(np.float64, copy=False)
    if array.size == 0 and not allow_empty:
        raise ValueError(f"{name}: expected at least one value, found an empty array of shape {array.shape}")
    check_finite(array, name)
    if positive and not (array > 0).all():
        raise ValueError(f"{name}: expected positive numbers, found {_first(array, array <= 0)}")
    if non_negative and not (array >= 0).all():
        raise ValueError(f"{name}: expected numbers >= 0, found {_first(array, array < 0)}")
    return array


def as_bits(bits: ArrayLike, *, low: int = 1, high: int = MAX_BITS) -> NDArray[np.int64]:
    """`bits` as an int64 array (0-d for a scalar) of integers in [low, high]; else TypeError or ValueError."""
    array = _real(bits, "bits")
    if array.size == 0:
        raise ValueError("bits: expected at least one value, found an empty array")
    if array.dtype.kind == "b":
        raise TypeError("bits: expected whole numbers, found booleans")
    inside = (array >= low) & (array <= high) & (array == np.floor(array))
    if not inside.all():
        found = _first(array, ~inside)
        raise ValueError(f"bits: expected whole numbers from {low} to {high}, found {found}")
    return array.astype(np.int64)


def as_bit_count(bits: int, *, low: int = 1, high: int = MAX_BITS) -> int:
    """One bit-width in [low, high] as a Python int."""
    array = as_bits(bits, low=low, high=high)
    if array.ndim:
        raise ValueError(f"bits: expected one whole number, found an array of shape {array.shape}")
    return int(array)


def check_finite(array: NDArray[Any], name: str) -> None:
    """Raise ValueError, with the counts, when `array` holds NaN or infinities."""
    if not np.isfinite(array).all():
        nan = int(np.isnan(array).sum())
        infinite = int(np.isinf(array).sum())
        raise ValueError(f"{name}: expected finite numbers, found {nan} NaN and {infinite} infinite among {array.size}")


def reject_nan(array: NDArray[Any], name: str) -> NoReturn:
    """Raise the ValueError for NaN that a kernel found in `array`."""
    count = int(np.isnan(array).sum())
    raise ValueError(f"{name}: expected numbers, found {count} NaN among {array.size} values")


def check_choice(value: object, name: str, choices: Collection[str]) -> None:
    """Raise ValueError, listing the choices, when `value` is none of them."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {listed}, found {value!r}")


def as_axis(axis: int, ndim: int, name: str = "axis") -> int:
    """`axis` counted from the front; ValueError when an array of `ndim` dimensions has no such axis."""
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, found {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: expected an axis of a {ndim}-dimensional array ({-ndim}..{ndim - 1}), found {axis}")
    return int(axis) % ndim


def _real(value: ArrayLike, name: str) -> NDArray[Any]:
    """`value` as a native-endian array of booleans, integers or floats."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of torch that records gradients
        raise TypeError(f"{name}: expected real numbers, found {_described(value)}{_reason(value, error)}") from error
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected real numbers, found {_described(value, array)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _described(value: object, array: NDArray[Any] | None = None) -> str:
    """What a caller passed instead of numbers, in a few words."""
    if value is None:
        return "None"
    if isinstance(value, str | bytes):
        return f"the text {value[:40]!r}"
    kind = type(value).__name__
    said = f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
    if array is None or not array.ndim:
        return said
    inside = type(array.flat[0]).__name__ if array.dtype == object and array.size else array.dtype.name
    return f"{said} of {'text' if array.dtype.kind in 'SU' else inside}"


def _reason(value: object, error: Exception) -> str:
    """Why numpy could not read it."""
    if isinstance(value, list | tuple) and "inhomogeneous" in str(error):
        return " whose rows differ in length"
    return f": {error}"


def _first(array: NDArray[Any], wrong: NDArray[np.bool_]) -> str:
    """The first wrong value, and how many more there are."""
    count = int(np.count_nonzero(wrong))
    value = array[wrong].flat[0] if array.ndim else array[()]
    return f"{value}" if count == 1 else f"{value} (and {count - 1} more)"
