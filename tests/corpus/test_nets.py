"""Random networks of all opsets: quantized soundly under every kind of request, or refused with a reason."""

from __future__ import annotations

import pytest
from judge import Unsound, judge
from random_nets import random_net

import qgraph

PER_TEST = 30


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


@pytest.mark.parametrize("part", range(4))
def test_eight_bits(part):
    seeds = range(PER_TEST * part, PER_TEST * (part + 1))
    assert holds(seeds) > 0.95 * len(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_eight_bits_of_many(part):
    seeds = range(120 * (part + 1), 120 * (part + 2))
    assert holds(seeds) > 0.95 * len(seeds)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "aciq", "weights": 4},
        {"format": "float", "weights": 3, "activations": 6},
        {"per_channel": False, "symmetric": False},
        {"data": None, "activations": None},
    ],
    ids=lambda options: "-".join(options),
)
def test_other_requests(options):
    """At fewer bits closeness is another test's; here that nothing escapes and that the result runs."""
    assert holds(range(1000, 1020), **options) >= 18


@pytest.mark.filterwarnings("ignore::UserWarning")  # some have nothing to distil from, and say so
def test_without_data():
    """Judged on the samples that the networks' own statistics describe: other data may lie outside of them."""
    quantized = 0
    for seed in (1001, 1002, 1039):
        model, _ = random_net(seed)
        result = qgraph.quantize(model, method="zeroq", threads=1)
        samples = next(result.samples.batches(8)).feeds
        quantized += judge(model, samples, method="zeroq", data=None).quantized
    assert quantized == 3
