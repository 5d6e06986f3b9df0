"""Which layers find the grid of their operand in every run, and in which networks most do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qgraph.plan.dynamic import mostly_products, why_not_dynamic


def layer(op="MatMul", *, weight_only=False, weight_index=1, is_half=False, groups=1, auto_pad="NOTSET"):
    node = SimpleNamespace(attributes={"auto_pad": SimpleNamespace(value=auto_pad)})
    return SimpleNamespace(
        op=op, weight_only=weight_only, weight_index=weight_index, is_half=is_half, groups=groups, node=node
    )


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (layer(), ""),
        (layer("Gemm"), ""),
        (layer("Conv"), ""),
        (layer("Conv", auto_pad="VALID"), ""),
        (layer("Conv", auto_pad="SAME_UPPER"), "its padding depends"),
        (layer("Conv", groups=2), "its groups"),
        (layer("Conv", weight_only=True), "it is in a body"),
        (layer("Conv", is_half=True), "16-bit floats"),
        (layer("ConvTranspose"), "onnxruntime's ConvTranspose"),
        (layer(weight_index=0), "its weight is the left factor"),
        (layer("LSTM", weight_only=True), "the weight alone is quantized"),
        (layer("Gather", weight_only=True), "the weight alone is quantized"),
        (layer(weight_only=True), ""),
        (layer(weight_only=True, is_half=True), "16-bit floats"),
    ],
)
def test_what_a_kernel_takes(one, why):
    assert why_not_dynamic(one).find(why) >= 0
    assert bool(why_not_dynamic(one)) == bool(why)


def test_more_than_half():
    """Of the layers that multiply at all; tables and recurrent layers do not count."""
    able, not_able, alone = layer(), layer("Conv"), layer(weight_only=True)
    assert mostly_products([able, able, not_able])
    assert not mostly_products([able, not_able])
    assert not mostly_products([not_able, not_able, able])
    assert mostly_products([able, alone, alone, alone])
    assert not mostly_products([alone])
    assert not mostly_products([])
