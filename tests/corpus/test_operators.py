"""Every operator of the standard, alone and between layers: quantized soundly, or refused with a reason."""

from __future__ import annotations

import operators
import pytest
from judge import Unsound, Verdict, judge

PARTS = 3  # tests of a few seconds each
ALL = 8 * PARTS


def verdicts(cases: list[operators.Case]) -> list[Verdict]:
    """One verdict per case; fails with the names and reasons of those that are unsound."""
    found, unsound = [], []
    for case in cases:
        try:
            found.append(judge(case.model, case.feeds))
        except Unsound as error:
            unsound.append(f"{case.name}: {error}")
        except Exception as error:
            unsound.append(f"{case.name}: {type(error).__name__}: {error}")
    assert not unsound, "\n".join(unsound)
    return found


def some(cases: list[operators.Case], part: int, *, of: int) -> list[operators.Case]:
    return [case for index, case in enumerate(cases) if index % of == part]


@pytest.mark.parametrize("constants", [False, True], ids=["tensors", "parameters"])
@pytest.mark.parametrize("part", range(PARTS))
def test_an_operator_between_layers(part, constants):
    found = verdicts(some(list(operators.between_layers(constants=constants)), part, of=ALL))
    assert sum(v.quantized for v in found) > 0.75 * len(found)


@pytest.mark.slow
@pytest.mark.parametrize("constants", [False, True], ids=["tensors", "parameters"])
@pytest.mark.parametrize("part", range(PARTS, ALL))
def test_the_other_operators_between_layers(part, constants):
    verdicts(some(list(operators.between_layers(constants=constants)), part, of=ALL))


@pytest.mark.parametrize("part", range(2))
def test_an_operator_by_itself(part):
    """Nothing to quantize: every one is refused, and the reason says what is missing or not supported."""
    for case, verdict in zip(chosen := some(list(operators.standard()), part, of=8), verdicts(chosen), strict=True):
        assert not verdict.quantized, case.name
