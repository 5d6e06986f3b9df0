"""Pad and Resize that name their axes (opset 18), rewritten for all axes; and a Pad merged into the MaxPool after it.

onnxruntime's layout optimiser, which converts integer convolutions and the operators between them to NHWC, permutes
pads and scales as if there were one for every axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.onnxfile.edit import add_initializer, constant
from qgraph.onnxfile.folding import Declined


def name_all_axes(model: ir.Model) -> Declined:
    """Pad(x, pads, value, axes) -> Pad(x, pads of all axes, value), and the same for the scales or sizes of Resize.

    Needs constants and the rank of x; sizes also need the lengths of the axes that are not named. Where something is
    unknown, the node stays.
    """
    declined: Declined = []
    for node in [n for n in model.graph if n.domain == ""]:
        why = ""
        if node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None:
            why = _complete_pads(model.graph, node)
        elif node.op_type == "Resize" and "axes" in node.attributes:
            why = _complete_resize(model.graph, node)
        declined += [(node, why)] if why else []
    return declined


def _complete_pads(graph: ir.Graph, node: ir.Node) -> str:
    """Write the pads of all axes; returns why that cannot be done ('' if it was)."""
    shape, pads, axes = _shape(node), constant(node.inputs[1]), constant(node.inputs[3])
    if shape is None or pads is None or axes is None:
        return "its pads or axes are not constants, or the rank of its input is not known"
    full = np.zeros((2, len(shape)), np.int64)
    full[:, _places(axes, len(shape))] = pads.reshape(2, -1)
    node.replace_input_with(1, _stored(graph, node, 1, full.reshape(-1)))
    node.resize_inputs(3)
    return ""


def _complete_resize(graph: ir.Graph, node: ir.Node) -> str:
    """Write the scales or sizes of all axes; returns why that cannot be done ('' if it was)."""
    shape = _shape(node)
    policy = node.attributes.get("keep_aspect_ratio_policy")
    stretches = policy is None or policy.as_string() == "stretch"
    index = 2 if len(node.inputs) < 4 or node.inputs[3] is None else 3
    given = constant(node.inputs[index])
    cropped = len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].name
    if shape is None or given is None or cropped or not stretches:
        return "its scales or sizes are not constants, or it crops, or keeps the aspect ratio"
    rest: list[Any] = [1.0] * len(shape) if index == 2 else [d if isinstance(d, int) else None for d in shape]
    for place, number in zip(_places(node.attributes["axes"].as_ints(), len(shape)), given.tolist(), strict=True):
        rest[place] = number
    if None in rest:
        return "the lengths of the axes that it does not name are open"
    node.replace_input_with(index, _stored(graph, node, index, np.asarray(rest, given.dtype)))
    del node.attributes["axes"]
    return ""


def pad_in_pools(model: ir.Model) -> Declined:
    """MaxPool(Pad(x, pads, -inf)) -> MaxPool(x) with these pads: the same numbers, none of them infinite.

    Applies when only the MaxPool reads the Pad, which pads spatial axes only, by less than the kernel.
    """
    declined: Declined = []
    for pool in [n for n in model.graph if n.op_type == "MaxPool" and n.domain == ""]:
        pad = pool.inputs[0].producer() if pool.inputs[0] is not None else None
        pads = None if pad is None else _lowest_pads(pad)
        kernel = pool.attributes["kernel_shape"].as_ints() if "kernel_shape" in pool.attributes else ()
        if pad is None or pads is None:
            continue
        if pads.shape[1] != len(kernel) + 2 or not _is_plain(pool):
            declined.append((pad, "the pool after it pads automatically, rounds up or returns indices"))
            continue
        own = np.asarray(pool.attributes["pads"].as_ints() if "pads" in pool.attributes else [0] * (2 * len(kernel)))
        total = pads[:, 2:] + own.reshape(2, -1)
        if pads.min() < 0 or pads[:, :2].any() or (total >= np.asarray(kernel)).any():
            declined.append((pad, "it crops, pads other axes, or pads by as much as the kernel or more"))
            continue
        pool.attributes.add(ir.AttrInt64s("pads", [int(p) for p in total.reshape(-1)]))
        pool.replace_input_with(0, pad.inputs[0])
        model.graph.remove(pad, safe=True)
    return declined


def _lowest_pads(pad: ir.Node) -> NDArray[Any] | None:
    """Pads at both ends of all axes of a Pad that fills with the lowest number and has one reader; otherwise None."""
    result = pad.outputs[0]
    if pad.op_type != "Pad" or pad.domain != "" or len(result.uses()) != 1 or result.is_graph_output():
        return None
    mode = pad.attributes.get("mode")
    fill = constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
    pads = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    axes = len(pad.inputs) > 3 and pad.inputs[3] is not None
    if (mode is not None and mode.as_string() != "constant") or axes or fill is None or pads is None:
        return None
    return pads.reshape(2, -1) if fill.size == 1 and fill.reshape(-1)[0] <= np.finfo(np.float32).min else None


def _is_plain(pool: ir.Node) -> bool:
    """Whether a MaxPool has explicit pads, rounds down, and returns no indices."""
    automatic = pool.attributes.get("auto_pad")
    ceil = pool.attributes.get("ceil_mode")
    explicit = automatic is None or automatic.as_string() in ("NOTSET", "VALID")
    if explicit and automatic is not None and automatic.as_string() == "VALID":
        del pool.attributes["auto_pad"]
    return explicit and (ceil is None or not ceil.as_int()) and not any(v.uses() for v in pool.outputs[1:])


def _shape(node: ir.Node) -> ir.Shape | None:
    return None if node.inputs[0] is None else node.inputs[0].shape


def _places(axes: NDArray[Any] | Sequence[int], rank: int) -> list[int]:
    return [int(axis) % rank for axis in axes]


def _stored(graph: ir.Graph, node: ir.Node, index: int, array: NDArray[Any]) -> ir.Value:
    old = node.inputs[index]
    return add_initializer(graph, f"{old.name if old is not None else node.name}/all axes", array)
