"""Sliding windows: the geometry shared by convolution and pooling, and the two sums that make up their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qgraph.gradient.expression import Expr, constant, op
from qgraph.gradient.registry import Node
from qgraph.gradient.shapes import dims, reshape_like


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Kernel size, strides, dilations and padding along each spatial axis; padding is always explicit."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """The span of the dilated kernel."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def attributes(self) -> dict[str, list[int]]:
        return {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.begin, *self.end],
        }


def window(n: Node, kernel: Sequence[int | str | None]) -> Window:
    """The window of a node over an input of known rank, with automatic padding resolved."""
    sizes_ = tuple(n.attribute("kernel_shape", kernel))
    if not all(isinstance(k, int) for k in sizes_):
        raise n.error("its kernel size is not known; give the weight a static shape or the node a kernel_shape")
    ones = [1] * len(sizes_)
    strides, dilations = tuple(n.attribute("strides", ones)), tuple(n.attribute("dilations", ones))
    pads = tuple(n.attribute("pads", [0] * 2 * len(sizes_)))
    auto = n.attribute("auto_pad", "NOTSET")
    made = Window(kernel=sizes_, strides=strides, dilations=dilations, begin=pads[: len(ones)], end=pads[len(ones) :])
    if auto == "NOTSET":
        return made
    amounts = [0] * len(ones) if auto == "VALID" else _same_padding(n, made)
    small = [a // 2 for a in amounts]
    large = [a - b for a, b in zip(amounts, small, strict=True)]
    begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Window(kernel=sizes_, strides=strides, dilations=dilations, begin=tuple(begin), end=tuple(end))


def _same_padding(n: Node, w: Window) -> list[int]:
    """The padding that makes the output ceil(size / stride) long."""
    amounts = []
    for size, extent, stride in zip(dims(n.x)[2:], w.extent, w.strides, strict=True):
        if stride == 1:
            amounts.append(extent - 1)
        elif isinstance(size, int):
            amounts.append(max((-(-size // stride) - 1) * stride + extent - size, 0))
        else:
            raise n.error("auto_pad with a stride needs static spatial sizes; fix the input size or give explicit pads")
    return amounts


def transposed(
    g: Expr, weight: Expr, w: Window, *, steps: Sequence[int | str | None], like: Expr, group: int = 1
) -> Expr:
    """dL/dx of the convolution of x (`like`) with `weight`: every window's gradient, added where it came from.

    `steps` is the number of window positions along each spatial axis, the spatial size of `g`.
    """
    if all(s == 1 for s in w.strides) and _fits(w, dims(like)[2:], steps):
        return _flipped_convolution(g, weight, w, group)
    lengths = dims(like)[2:]
    if not all(isinstance(d, int) for d in (*lengths, *steps)):
        return _transposed_at_run_time(g, weight, w, like, group)
    rest = [
        length + b + e - extent - s * (step - 1)
        for length, b, e, extent, s, step in zip(lengths, w.begin, w.end, w.extent, w.strides, steps, strict=True)
    ]
    end = [e + max(-r, 0) for e, r in zip(w.end, rest, strict=True)]
    attributes = w.attributes() | {"pads": [*w.begin, *end], "output_padding": [max(r, 0) for r in rest]}
    return op.ConvTranspose(g, weight, group=group, kernel_shape=list(w.kernel), **attributes)


def _fits(w: Window, lengths: Sequence[int | str | None], steps: Sequence[int | str | None]) -> bool:
    """Whether a stride-1 window reaches exactly the input's end, with no more padding than a kernel overlaps."""
    padded = all(max(b, e) < extent for b, e, extent in zip(w.begin, w.end, w.extent, strict=True))
    return padded and all(
        not isinstance(length, int) or not isinstance(step, int) or step == length + b + e - extent + 1
        for length, step, b, e, extent in zip(lengths, steps, w.begin, w.end, w.extent, strict=True)
    )


def _flipped_convolution(g: Expr, weight: Expr, w: Window, group: int) -> Expr:
    """ConvTranspose of stride 1 as the equivalent Conv, which onnxruntime runs several times faster."""
    begin = [extent - 1 - b for extent, b in zip(w.extent, w.begin, strict=True)]
    end = [extent - 1 - e for extent, e in zip(w.extent, w.end, strict=True)]
    spatial = len(w.kernel)
    depthwise = dims(weight)[:2] == (group, 1)
    turned = flip(weight, range(2, 2 + spatial))
    flipped = turned if depthwise else swap_channels(turned, group, spatial=spatial)
    return op.Conv(
        g, flipped, group=group, kernel_shape=list(w.kernel), dilations=list(w.dilations), pads=[*begin, *end]
    )


def flip(x: Expr, axes: Sequence[int]) -> Expr:
    turned = [a for a in axes if dims(x)[a] != 1]
    if not turned:
        return x
    lowest = int(np.iinfo(np.int64).min)
    starts, ends, steps = ([value] * len(turned) for value in (-1, lowest, -1))
    return op.Slice(x, constant(starts), constant(ends), constant(turned), constant(steps))


def swap_channels(weight: Expr, group: int, *, spatial: int) -> Expr:
    """Exchange output and input channels within each group: (g o) i ... -> (g i) o ..."""
    if group == 1:
        return op.Transpose(weight, perm=[1, 0, *range(2, 2 + spatial)])
    apart = op.Reshape(weight, op.Concat(constant([group, -1]), op.Shape(weight, start=1), axis=0))
    swapped = op.Transpose(apart, perm=[0, 2, 1, *range(3, 3 + spatial)])
    return op.Reshape(swapped, op.Concat(constant([-1]), op.Shape(swapped, start=2), axis=0))


def _transposed_at_run_time(g: Expr, weight: Expr, w: Window, like: Expr, group: int) -> Expr:
    """The whole transposed convolution, then cropped (or zero-padded) to a size that is known only at run time."""
    spatial = list(range(2, 2 + len(w.kernel)))
    attributes = w.attributes() | {"pads": [0] * 2 * len(spatial)}
    whole = op.ConvTranspose(g, weight, group=group, kernel_shape=list(w.kernel), **attributes)
    after = op.Sub(op.Sub(op.Shape(like, start=2), op.Shape(whole, start=2)), constant([-b for b in w.begin]))
    before = constant([0, 0, *(-b for b in w.begin), 0, 0])
    return op.Pad(whole, op.Concat(before, after, axis=0))


def correlate(x: Expr, g: Expr, w: Window, *, like: Expr, group: int = 1) -> Expr:
    """dL/dw of the convolution of x with w (`like`): a Conv of x with g, batch and channels swapped.

    dw[o, i, k] = sum over n, t of x[n, i, s t + d k] g[n, o, t]: strides and dilations are exchanged.
    """
    spatial = list(range(2, 2 + len(w.kernel)))
    swapped = [1, 0, *spatial]
    images = op.Transpose(x, perm=swapped) if group == 1 else _groups_as_batch(x, group, spatial)
    attributes = {"strides": list(w.dilations), "dilations": list(w.strides), "pads": [*w.begin, *w.end]}
    taps = op.Conv(images, op.Transpose(g, perm=swapped), group=group, **attributes)
    if any(s > 1 for s in w.strides):  # a stride may leave positions at the end that no window saw
        taps = op.Slice(taps, constant([0] * len(spatial)), constant(list(w.kernel)), constant(spatial))
    return reshape_like(op.Transpose(taps, perm=swapped), like)


def _groups_as_batch(x: Expr, group: int, spatial: Sequence[int]) -> Expr:
    """N (g i) ... -> i (g N) ...: channels of one group are batches, the groups' batches are channels."""
    apart = op.Reshape(x, op.Concat(constant([0, group, -1]), op.Shape(x, start=2), axis=0))
    turned = op.Transpose(apart, perm=[2, 1, 0, *(a + 1 for a in spatial)])
    merged = op.Concat(constant([0, -1]), op.Shape(x, start=2), axis=0)
    return op.Reshape(turned, merged)
