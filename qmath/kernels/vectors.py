"""Hints to LLVM that make compiled loops use the widest vectors of the processor; without such vectors they do nothing.

The results of `least` and `greatest` mean nothing when an operand is NaN: look for NaN first.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from numba.core import types
from numba.extending import intrinsic

_NO_NAN = ("nnan", "nsz")  # otherwise LLVM does not vectorise a reduction over floats


@intrinsic
def widest_vectors(typing_context):
    """Let LLVM use 512-bit vectors in the calling function; on many processors it prefers 256."""

    def lower(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add accepts few names
        return context.get_dummy_value()

    return types.none(), lower


@intrinsic
def least(typing_context, a, b):
    """The smaller of two floats of one type, neither NaN."""
    return a(a, b), _choose("<")


@intrinsic
def greatest(typing_context, a, b):
    """The larger of two floats of one type, neither NaN."""
    return a(a, b), _choose(">")


def _choose(comparison):
    def lower(context, builder, signature, arguments):
        first = builder.fcmp_ordered(comparison, *arguments, flags=_NO_NAN)
        return builder.select(first, *arguments, flags=_NO_NAN)

    return lower
