"""Random networks of all opsets: quantized soundly under every kind of request, or refused with a reason."""

from __future__ import annotations

import pytest
from judge import Unsound, judge
from random_nets import random_net

PER_TEST = 60


def holds(seeds: range, **options) -> int:
    """How many of the seeds' nets were quantized; fails with those that are unsound."""
    quantized, unsound = 0, []
    for seed in seeds:
        model, feeds = random_net(seed)
        try:
            quantized += judge(model, feeds, **options).quantized
        except Unsound as error:
            unsound.append(f"seed {seed}: {error}")
        except Exception as error:
            unsound.append(f"seed {seed}: {type(error).__name__}: {error}")
    assert not unsound, "\n".join(unsound)
    return quantized


@pytest.mark.parametrize("part", range(6))
def test_eight_bits(part):
    seeds = range(PER_TEST * part, PER_TEST * (part + 1))
    assert holds(seeds) > 0.95 * len(seeds)
