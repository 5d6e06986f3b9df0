"""Which tensors get grids, and which layers run on integers, given the values that layers really read.

Operators that move values may also drop some: a Slice cuts one part out of a projection, and a MaxPool never passes
padding on. A layer whose operand spans a much narrower range than the tensor it was moved from gets a grid of its own
on that operand. So does every other layer that reads the tensor through such operators; the tensor itself is not
rounded on the way. A layer whose operand is one number in all samples, such as an input left at zero, reads floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from qgraph.graph.layers import Layer, present
from qgraph.graph.sites import ActivationSite, GraphView
from qgraph.graph.tensors import fused_output, is_transparent, root
from qgraph.plan.cost import why_slower
from qgraph.plan.ranges import Ranges, span

_APART = 2.0  # a tensor this many times as wide as an operand cut from it costs it 6 dB: the operand gets its own grid
_LOOSE = 4.0  # a result this many times as wide as a part of it stays float, and its layer does not run on integers
_SELECTING_OPS = frozenset({"Split", "Gather"})  # besides transparent operators


def place(
    view: GraphView, layers: Sequence[Layer], observed: Ranges
) -> tuple[tuple[ActivationSite, ...], dict[str, str]]:
    """The tensors to quantize so that `layers` run on integers, and the reason for each layer that cannot."""
    layers = [layer for layer in layers if layer.is_observed]
    left = {layer.name: why for layer in layers if (why := why_slower(layer) or _why_uncovered(layer, observed))}
    layers = [layer for layer in layers if layer.name not in left]
    readers = [layer for layer in layers if layer.has_integer_kernel]
    divided = {
        root(layer.input)
        for layer in readers
        if _APART * span(observed, layer.input) < span(observed, root(layer.input))
    }
    apart = frozenset(
        str(layer.input.name) for layer in readers if root(layer.input) in divided and layer.input not in divided
    )
    loose = frozenset(
        str(source.name)
        for site in view.activation_sites(layers, apart)
        if site.operand
        for source in _selected_from(view.values[site.tensor])
        if _LOOSE * span(observed, view.values[site.tensor]) < span(observed, source)
    )
    floats = {
        layer.name: "parts of its result span far less than it does: it writes floats, its weights alone are quantized"
        for layer in readers
        if layer.op == "Conv" and fused_output(layer.output).name in loose
    }
    return view.activation_sites([layer for layer in layers if layer.name not in floats], apart, loose), left | floats


def _why_uncovered(layer: Layer, observed: Ranges) -> str:
    """Why no grid can be chosen for the operand of a layer: it was the same number throughout; '' where one can."""
    if not layer.has_integer_kernel:
        return ""
    low, high = observed.range_of(str(layer.input.name))
    if layer.in_body and low == high == 0:
        idle = "no step of its body runs" if layer.in_steps else "no sample takes its branch"
        return f"{idle}, or it reads nothing but 0: the weight alone is quantized"
    same = f"'{layer.input.name}' is {low:g} in all samples, which says nothing of its range"
    return f"{same}: the weight alone is quantized" if low == high else ""


def _selected_from(value: ir.Value) -> Iterator[ir.Value]:
    """The tensors that a tensor was moved or cut from, nearest first."""
    while (node := value.producer()) is not None and node.domain == "":
        if not is_transparent(node) and node.op_type not in _SELECTING_OPS:
            return
        value = present(node.inputs[0])
        yield value
