"""A request with its defaults filled in: what is understood, what follows from it, and what is refused."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from qgraph.errors import UsageError
from qgraph.plan.recipe import check_format
from qgraph.plan.request import choose_recipe
from qgraph.running.wording import speaking_flags

INF = float("inf")


def choose(method=None, has_data=True, **options):
    with speaking_flags():
        return choose_recipe(method, has_data, **options)


def test_the_method_follows_from_the_data():
    assert (choose().method, choose(None, False).method) == ("aciq", "zeroq")
    assert choose("minmax").clip == "max"


def test_bits_as_words():
    assert choose(weights="4", activations="6").weights == 4
    assert choose(activations="none").activations is None
    each = choose(weights="head.*=8,*=4", activations="a=5", changes=("b:weights=3",))
    assert each.changes == ("*:weights=4", "head.*:weights=8", "a:activations=5", "b:weights=3")
    assert (each.weights, each.activations) == (8, 8)
    for wrong in ({"weights": "head=9"}, {"changes": ("head=4",)}):
        with pytest.raises(UsageError, match="is not of the form"):
            choose(**wrong)


def test_a_budget_means_mixed_bits():
    assert choose(size_mb=2.0).weights == "mixed"
    assert choose(size_mb=2.0).average_bits is None
    assert choose(weights="mixed").average_bits == 4.0
    assert choose().average_bits is None
    assert choose(max_drop=0, weights="mixed").max_drop == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": 1}, "--weights must be a number from 2 to 8, not 1"),
        ({"activations": 9}, "--activations must be a number from 2 to 8, not 9"),
        ({"edge_bits": 1}, "--edge-bits must be a number"),
        ({"weights": "dynamic"}, "--weights must be a number"),
        ({"edge_bits": "mixed"}, "--edge-bits must be a number"),
        ({"weights": None, "activations": None}, "leave nothing to quantize"),
        ({"weights": None}, "has no integer kernel"),
        ({"portable": True, "activations": None}, "--portable is for codes of activations"),
        ({"portable": True, "target": "decode", "method": "minmax"}, "--portable is for codes of activations"),
        ({"group": 1}, "--group must be a number of inputs from 2 on"),
        ({"group": "some"}, "--group must be a number of inputs"),
        ({"group": 32, "per_channel": False}, "--group is for grids by least squares"),
        ({"group": 32, "clip": "qrater"}, "--group is for grids by least squares"),
        ({"group": 32, "method": "lsqplus"}, "--group is for grids by least squares"),
        ({"clip": "best"}, "unknown clip method 'best'"),
        ({"weight_clip": "qrater"}, "unknown clip method 'qrater'"),
        ({"rounding": "up"}, "unknown rounding 'up'"),
        ({"bits": ()}, "--bits must be numbers from 2 to 8"),
        ({"bits": (2, 9)}, "--bits must be numbers from 2 to 8"),
        ({"bits": (1, 8)}, "--bits must be numbers from 2 to 8"),
        ({"size_mb": 0}, "--size-mb must be a positive number"),
        ({"average_bits": INF}, "--average-bits must be a positive number"),
        ({"max_drop": -1}, "--max-drop must be a positive number"),
        ({"weights": 4, "size_mb": 1}, "give it with --weights mixed"),
        ({"size_mb": 1, "average_bits": 4}, "give one of --size-mb and --average-bits"),
        ({"activations": "dynamic", "rounding": "qrater"}, "no grid to search or to train"),
        ({"activations": "dynamic", "method": "lsqplus"}, "no grid to search or to train"),
        ({"allocate_bits": "some"}, "--allocate-bits must be one of"),
        ({"weights": "mixed", "allocate_bits": "weights"}, "choose one of them"),
        ({"search": "all"}, "--select must be one of"),
        ({"direction": "up"}, "--direction must be one of"),
        ({"target_cpu": "arm"}, "--target-cpu must be one of"),
        ({"symmetric": False, "method": "lsqplus"}, "LSQ[+] learns weight grids with --symmetric"),
        ({"correct_outputs": True, "method": "lsqplus"}, "learns its biases"),
        ({"has_data": False, "method": "aciq"}, "method 'aciq' needs data"),
        ({"wieghts": 4}, "unknown option 'wieghts'.*weights"),
        ({"method": "best"}, "unknown method 'best'"),
    ],
)
def test_requests_that_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        choose(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"weights": 2, "activations": 8, "edge_bits": 2},
        {"group": 2},
        {"group": "none", "per_channel": False},
        {"bits": (2, 8), "weights": "mixed"},
        {"weights": "mixed", "allocate_bits": "none"},
        {"clip": "qrater", "rounding": "qrater"},
        {"symmetric": True, "method": "lsqplus"},
        {"has_data": False, "method": "aciq", "activations": None},
        {"has_data": False, "method": "aciq", "activations": "dynamic"},
        {"has_data": False, "method": "zeroq"},
    ],
)
def test_requests_at_the_limit(given):
    assert choose(**given)


def test_a_format_is_one_of_two():
    check_format("qdq")
    with pytest.raises(UsageError, match="choose one of qdq, float"):
        check_format("int8")


def test_which_grids_are_symmetric():
    """Those of eight bits on integers, one less with a bit of headroom, and all that are searched."""
    for bits, floats, headroom in itertools.product(range(2, 9), (False, True), (False, True)):
        expected = bits == 8 - headroom or bits == 8
        assert choose(reduce_range=headroom).symmetric_at(bits, floats=floats) == (expected and not floats)
        assert choose(clip="qrater").symmetric_at(bits, floats=floats)
        for asked in (True, False):
            assert choose(symmetric=asked).symmetric_at(bits, floats=floats) is asked


def test_which_weights_have_groups():
    assert [choose().group_at(bits) for bits in range(2, 9)] == [32] * 3 + [None] * 4
    assert [choose(group=64).group_at(bits) for bits in (4, 8)] == [64, 64]
    for without in ({"group": "none"}, {"per_channel": False}, {"weight_clip": "max"}, {"clip": "qrater"}):
        assert choose(**without).group_at(4) is None
    assert choose("lsqplus").group_at(4) is None


def test_what_is_searched():
    assert choose().ingredients == ()
    assert choose(clip="qrater").ingredients == ("clip", "bias")
    assert choose(rounding="qrater", bias_correction=False).ingredients == ("round",)
    assert choose("qrater").ingredients == ("clip", "round", "bias")
    assert choose("qrater", clip="mse", rounding="nearest").ingredients == ("bias",)
    assert choose(clip="qrater").methods == ("aciq", "qrater")
    assert choose("qrater").methods == ("qrater",)
    assert choose(rounding="second-order").methods == ("aciq", "second-order")
    assert choose("second-order").methods == ("second-order",)
    assert choose("reconstruct").methods == choose("reconstruct", effort="best").methods == ("reconstruct",)


def test_what_is_on_offer():
    """Methods that nobody asked for by name."""
    for effort in ("fast", "default"):
        assert choose(effort=effort).offered == choose("zeroq", effort=effort).offered == ("second-order",)
        assert choose("second-order", effort=effort).offered == choose("reconstruct", effort=effort).offered == ()
    assert choose(effort="best").offered == ("second-order", "reconstruct")
    assert choose("second-order", effort="best").offered == ("reconstruct",)
    assert choose(rounding="nearest", effort="best").offered == ("reconstruct",)
    for decided in (
        {"rounding": "nearest"},
        {"rounding": "second-order"},
        {"clip": "qrater"},
        {"protocol": "paper"},
        {"max_drop": 1},
    ):
        assert choose(**decided).offered == ()
    for method in ("minmax", "qrater", "lsqplus", "reconstruct"):
        assert choose(method).offered == ()


def test_what_needs_samples():
    weights_alone = {"method": "zeroq", "activations": None}
    assert not choose(**weights_alone).needs_data
    assert choose("zeroq").needs_data
    assert not choose("zeroq", activations="dynamic").needs_data
    for asked in (
        {"weights": "mixed"},
        {"correct_outputs": True},
        {"rounding": "second-order"},
        {"effort": "best"},
        {"clip": "qrater"},
    ):
        assert choose(**weights_alone, **asked).needs_data
    assert choose().needs_histograms
    assert not choose(clip="max").needs_histograms
    assert not choose(activations=None).needs_histograms
    assert not choose(activations="dynamic").needs_histograms


def test_where_variants_are_worth_trying():
    """Where some grid has fewer than eight bits, and nothing that the caller asked for decides already."""
    for weights, activations in itertools.product((3, 8), (4, 8, None)):
        few = weights < 8 or activations == 4
        assert choose(weights=weights, activations=activations).undecided == (few and activations is not None)
    for decided in ({"allocate_bits": "none"}, {"clip": "mse"}, {"weights": "mixed"}, {"rounding": "qrater"}):
        assert not choose(**{"weights": 3, **decided}).undecided


def test_the_bits_of_a_layer():
    kinds = (("c", "Conv"), ("f", "Conv"), ("t", "Gather"))
    conv, first, table = (SimpleNamespace(name=name, op=op, is_tied=False) for name, op in kinds)
    edges = frozenset({"f", "t"})

    def bits(**options):
        recipe = choose(**options)
        return [recipe.bits_of(layer, edges) for layer in (conv, first, table)]

    assert bits(weights=4) == [4, 8, 4]
    assert bits(weights=4, edge_bits=6) == [4, 6, 4]
    assert bits(weights="mixed") == [8, 8, 8]
    assert bits(weights=8, reduce_range=True) == [7, 7, 7]
    assert bits(weights=4, reduce_range=True) == [4, 7, 4]
    assert bits(weights=4, changes=("f:weights=5", "c:activations=3")) == [4, 5, 4]
    assert [choose(weights=8).at(3).bits_of(layer, edges) for layer in (conv, first)] == [3, 3]
    assert [choose(weights=8, edge_bits=6).at(3).bits_of(layer, edges) for layer in (conv, first)] == [3, 6]
