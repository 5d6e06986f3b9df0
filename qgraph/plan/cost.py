"""Which layers are slower on integers than in floats, on any CPU, because of how onnxruntime's kernels work.

A float convolution works in place on blocks of 8 or 16 channels. An integer convolution first copies the taps of every
position into a row (im2col), group by group, and then multiplies the rows by as many columns as a group has outputs, 16
at a time (depthwise ones have a kernel of their own). Where a group has few outputs, the copying costs more than the
multiplication saves. Measured on AVX2, relative to the float kernel: 1.3 to 3.7 with 8 outputs or fewer, 1.4 to 24 in
groups of 16 outputs or fewer, below 0.9 with 32. The rule depends on the graph alone, so that every machine writes the
same file.
"""

from __future__ import annotations

import numpy as np

from qgraph.graph.layers import Layer, attribute

_FEW_IN_GROUPS = 16  # outputs per group
_FEW = 8  # outputs of a convolution that is not grouped
_MUCH_COPIED = 2**19  # copied values per sample; below this, nothing is lost


def why_slower(layer: Layer) -> str:
    """Why the integer kernel of a layer would be slower than its float kernel; empty if it would not."""
    if layer.op != "Conv":
        return ""
    outputs, inputs = layer.weight_array().shape[:2]
    if layer.groups > 1:
        depthwise = inputs == 1 and outputs == layer.groups
        slow = not depthwise and outputs // layer.groups <= _FEW_IN_GROUPS
        return _reason(f"a convolution in {layer.groups} groups of {outputs // layer.groups}", "1.4") if slow else ""
    slow = outputs <= _FEW and _gathers(layer) and _copied(layer) >= _MUCH_COPIED
    return _reason(f"a convolution with {outputs} outputs", "1.3") if slow else ""


def _reason(what: str, times: str) -> str:
    return f"{what} would be at least {times} times slower on integers: its weight alone is quantized"


def _gathers(layer: Layer) -> bool:
    """Whether the kernel has to copy the operand into rows first."""
    return bool(np.prod(layer.weight_array().shape[2:]) > 1 or attribute(layer.node, "strides", [1])[0] > 1)


def _copied(layer: Layer) -> int:
    """About how many values are copied per sample, as if the stride were 1; 0 where sizes are unknown."""
    places = list(layer.input.shape or ())[2:]
    if not places or not all(isinstance(size, int) for size in places):
        return 0
    strides = attribute(layer.node, "strides", [1] * len(places))
    return int(layer.weight_array()[0].size * np.prod(np.asarray(places) // np.asarray(strides)))
