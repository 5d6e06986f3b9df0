"""Every operator of the standard, alone and between layers: quantized soundly, or refused with a reason."""

from __future__ import annotations

import operators
import pytest
from judge import Unsound, Verdict, judge

PARTS = 24  # of all cases


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


@pytest.mark.parametrize("part", range(4))
def test_an_operator_between_layers(part):
    found = verdicts(some(operators.one_of_each(), part, of=4))
    assert len(found) > 40
    assert sum(v.quantized for v in found) > 0.75 * len(found)


@pytest.mark.slow
@pytest.mark.parametrize("constants", [False, True], ids=["tensors", "parameters"])
@pytest.mark.parametrize("part", range(PARTS))
def test_all_cases_between_layers(part, constants):
    verdicts(list(operators.between_layers(range(part, len(operators.standard()), PARTS), constants=constants)))


@pytest.mark.parametrize("part", range(2))
def test_an_operator_by_itself(part):
    """Nothing to quantize: every one is refused, and the reason says what is missing or not supported."""
    for case, verdict in zip(chosen := some(list(operators.standard()), part, of=8), verdicts(chosen), strict=True):
        assert not verdict.quantized, case.name
