"""The fused multiply-add in compiled code: a * b + c with one rounding."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from numba.extending import intrinsic


@intrinsic
def fma(typing_context, a, b, c):
    """a b + c, rounded once; all three are of the same floating type."""

    def lower(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return a(a, b, c), lower
