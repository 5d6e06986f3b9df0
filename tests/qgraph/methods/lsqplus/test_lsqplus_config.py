"""What a stranger's training gets: epochs and rates by the fewest bits."""

from __future__ import annotations

import pytest

from qgraph.errors import UsageError
from qgraph.methods.lsqplus.config import LsqPlusConfig, Schedule


@pytest.mark.parametrize(
    ("bits", "steps", "expected"),
    [
        (2, 300, Schedule(epochs=14, rate=1e-2, scale_rate=1e-2)),
        (3, 300, Schedule(epochs=10, rate=5e-3, scale_rate=5e-3)),
        (4, 150, Schedule(epochs=6, rate=3e-3, scale_rate=3e-3)),
        (8, 300, Schedule(epochs=4, rate=2e-3, scale_rate=2e-3)),
        (4, 100, Schedule(epochs=9, rate=3e-3, scale_rate=3e-3)),
        (2, 7, Schedule(epochs=60, rate=1e-2, scale_rate=1e-2)),
    ],
)
def test_fewest_bits_choose(bits: int, steps: int, expected: Schedule) -> None:
    assert LsqPlusConfig().schedule(bits=bits, steps=steps) == expected


def test_what_is_given_is_taken() -> None:
    given = LsqPlusConfig(epochs=1, rate=0.5).schedule(bits=2, steps=7)
    assert given == Schedule(epochs=1, rate=0.5, scale_rate=0.5)
    assert LsqPlusConfig(scale_rate=0.5).schedule(bits=2, steps=300) == Schedule(epochs=14, rate=1e-2, scale_rate=0.5)


def test_gradient_descent_needs_a_rate() -> None:
    with pytest.raises(UsageError, match=r"multiplies gradients, whose size is unknown: give its config\.rate"):
        LsqPlusConfig(optimiser="sgd")
