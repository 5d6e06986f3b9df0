"""Bits for single layers, in words."""

from __future__ import annotations

import pytest

from qgraph.errors import UsageError
from qgraph.plan.changes import Change, bits_for, check_patterns, parsed, per_layer


def test_words():
    assert Change.parse(" layer2.*:weights=4 ") == Change(pattern="layer2.*", what="weights", bits=4)
    assert Change.parse("a:b:activations=8") == Change(pattern="a:b", what="activations", bits=8)
    for wrong in ("a:weights=1", "a:weights=9", "a:weights=", ":weights=4", "weights=4", "a:bias=4", "a:weights=4x"):
        with pytest.raises(UsageError, match="is not of the form PATTERN:weights=N"):
            Change.parse(wrong)


def test_the_last_that_matches_counts():
    changes = parsed(["*:weights=4", "head.*:weights=8", "head.1:activations=3"])
    assert [bits_for(changes, name, "weights") for name in ("body", "head.0", "head.1")] == [4, 8, 8]
    assert [bits_for(changes, name, "activations") for name in ("body", "head.1")] == [None, 3]


def test_of_those_in_one_word_the_first_counts():
    changes = parsed(per_layer("head.*=8, *=4", "activations"))
    assert [bits_for(changes, name, "activations") for name in ("body", "head.0")] == [4, 8]
    assert parsed(per_layer("a=b=5")) == (Change(pattern="a=b", what="weights", bits=5),)


def test_a_pattern_that_matches_nothing():
    check_patterns(parsed(["he*:weights=4"]), ["body", "head"])
    with pytest.raises(UsageError, match=r"'haed' matches no layer.*head"):
        check_patterns(parsed(["*:weights=4", "haed:weights=4"]), ["body", "head"])
