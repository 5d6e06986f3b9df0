"""Bits of table rows by how often they are read: the smoothing by hand, and the least error for the bits spent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qmath

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any)


@given(COUNTS)
def test_probabilities_sum_to_one_and_keep_the_order(counts):
    likely = qmath.lookup_probabilities(counts)
    assert likely.sum() == pytest.approx(1) or (0 in counts and 1 not in counts)
    seen = np.array(counts) > 0
    assert (np.diff(likely[seen][np.argsort(np.array(counts)[seen])]) >= 0).all()


def test_what_was_read_once_tells_of_what_was_not():
    """Good (1953): 10 lookups, 4 rows read once: the 8 rows never read have 4/10 together."""
    likely = qmath.lookup_probabilities([6, 1, 1, 1, 1, *[0] * 8])
    np.testing.assert_allclose(likely, [0.36, *[0.06] * 4, *[0.05] * 8])
    np.testing.assert_allclose(qmath.lookup_probabilities([3, 1]), [0.75, 0.25])


@given(COUNTS, st.integers(2, 6), st.sampled_from([0.0, 0.25, 1.0]))
def test_bits_stay_between_their_ends_and_within_the_room(counts, bits, spare):
    found = qmath.lookup_bits(counts, bits=bits, max_bits=7, spare=spare)
    assert found.min() >= bits
    assert found.max() <= 7
    assert found.mean() <= bits + spare
    order = np.argsort(counts)
    assert (np.diff(found[order]) >= 0).all() or 0 in counts


def test_no_other_bits_of_the_same_sum_have_less_error():
    counts = [4096, 256, 16, 16, 1, 1]
    found = qmath.lookup_bits(counts, bits=2, max_bits=8, spare=2.0)
    likely = qmath.lookup_probabilities(counts)

    def error(widths: object) -> float:
        return float((likely * 4.0 ** -np.asarray(widths, float)).sum())

    rivals = (w for w in itertools.product(range(2, 9), repeat=6) if sum(w) <= found.sum())
    assert error(found) == pytest.approx(min(map(error, rivals)), rel=0.2)
    assert error(found) < 0.1 * error(np.full(6, found.mean()))


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"counts": [0, 0], "bits": 4}, "not all zero"),
        ({"counts": [[1, 2]], "bits": 4}, r"shape \(1, 2\)"),
        ({"counts": [-1, 2], "bits": 4}, "counts"),
        ({"counts": [1, 2], "bits": 4, "max_bits": 3}, "at least bits = 4"),
        ({"counts": [1, 2], "bits": 4, "spare": -1}, "spare"),
    ],
)
def test_what_makes_no_sense_is_refused(given_, message):
    with pytest.raises(ValueError, match=message):
        qmath.lookup_bits(**given_)
