"""Loops with further states, and Scans as Loops: a Scan carries tensors of one shape alone, a Loop also sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

_LAST = np.iinfo(np.int64).min  # where a Slice ends that goes backwards through everything

Replaced = dict[ir.Value, ir.Value]  # what took the place of a value


def latest(value: ir.Value, replaced: Replaced) -> ir.Value:
    """What stands for a value after all replacements."""
    while value in replaced:
        value = replaced[value]
    return value


def observable(node: ir.Node) -> bool:
    """Whether a node is a Loop, or a Scan that can be written as one: it stacks its results along their first axis."""
    return node.op_type == "Loop" or (node.op_type == "Scan" and not any(_numbers(node, "scan_output_axes", 1)))


def count_states(loop: ir.Node) -> int:
    """How many tensors a Loop carries, behind the number of its steps and the condition."""
    return max(len(loop.inputs) - 2, 0)


def with_states(loop: ir.Node, begun: Sequence[ir.Value], replaced: Replaced) -> tuple[ir.Node, list[ir.Value]]:
    """A Loop in place of another that carries further states from `begun`, and their inputs of its body.

    The body is the same graph; what it makes of the states is yet to be put among its outputs.
    """
    body, first, more = loop.attributes["body"].as_graph(), count_states(loop), len(begun)
    states = [ir.Value(name=f"{value.name}/so far", type=value.type) for value in begun]
    body.inputs.extend(states)
    inputs = [*loop.inputs, None, None][: first + 2]  # the number of steps and the condition may be left out
    count, attributes = max(len(loop.outputs), first) + more, list(loop.attributes.values())
    fresh = ir.Node("", "Loop", [*inputs, *begun], attributes, num_outputs=count, name=loop.name)
    loop.graph.insert_before(loop, fresh)  # type: ignore[union-attr]
    results = [*fresh.outputs[:first], *fresh.outputs[first + more :]]
    _replace(loop, results[: len(loop.outputs)], replaced)
    return fresh, states


def as_loop(scan: ir.Node, replaced: Replaced) -> ir.Node:
    """A Loop in place of a Scan, with the same body, which cuts the part of every step out of the tensors itself."""
    body = scan.attributes["body"].as_graph()
    first = len(scan.inputs) - scan.attributes["num_scan_inputs"].as_int()
    sources = scan.inputs[first:]
    axes = _numbers(scan, "scan_input_axes", len(sources))
    backwards = _numbers(scan, "scan_input_directions", len(sources))
    made = _Maker(str(scan.outputs[0].name), scan)
    steps = made.op("Gather", made.op("Shape", sources[0]), made.whole(axes[0]))
    last = made.op("Sub", steps, made.whole(1))
    loop = ir.Node(
        "",
        "Loop",
        [steps, None, *scan.inputs[:first]],
        [scan.attributes["body"]],
        num_outputs=len(scan.outputs),
        name=scan.name,
    )
    made.put(loop)
    _step_by_step(body, first, sources, axes, backwards, last, replaced)
    _replace(scan, _in_order(scan, loop, first), replaced)
    return loop


def _step_by_step(
    body: ir.Graph,
    first: int,
    sources: Sequence[ir.Value | None],
    axes: Sequence[int],
    backwards: Sequence[int],
    last: ir.Value,
    replaced: Replaced,
) -> None:
    """Turn the body of a Scan into that of a Loop; the first inputs are states, and the others come from `sources`."""
    stem = str(last.name)
    step = ir.Value(name=f"{stem}/step", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    goes = ir.Value(name=f"{stem}/goes", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    states, parts = list(body.inputs[:first]), list(body.inputs[first:])
    body.inputs.clear()
    body.inputs.extend([step, goes, *states])
    made = _Maker(f"{stem}/part", next(iter(body), None), body)
    turned = made.op("Sub", last, step) if any(backwards) else step
    for part, source, axis, back in zip(parts, sources, axes, backwards, strict=True):
        cut = made.op("Gather", source, turned if back else step, axis=axis)
        _give_place(part, cut, replaced)
    body.outputs.insert(0, made.op("Identity", goes))


def _in_order(scan: ir.Node, loop: ir.Node, states: int) -> list[ir.Value]:
    """The results of a Loop as those of the Scan, some of which begin with the last step."""
    turned = _numbers(scan, "scan_output_directions", len(scan.outputs) - states)
    made, results = _Maker(f"{scan.outputs[0].name}/turned", scan), list(loop.outputs)
    for place, back in enumerate(turned, states):
        if back:
            ends = [made.row(number) for number in (-1, _LAST, 0, -1)]  # starts, ends, axes, steps
            results[place] = made.op("Slice", loop.outputs[place], *ends)
    return results


def _replace(old: ir.Node, outputs: Sequence[ir.Value], replaced: Replaced) -> None:
    """Remove a node, whose results become `outputs`."""
    graph: Any = old.graph
    for value, other in zip(old.outputs, outputs, strict=True):
        _give_place(value, other, replaced)
    for index in range(len(old.inputs)):
        old.replace_input_with(index, None)
    graph.remove(old)


def _give_place(old: ir.Value, new: ir.Value, replaced: Replaced) -> None:
    """Let all that reads `old` read `new`, which takes its name."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.type, new.shape = old.type, old.shape
    old.name, new.name = f"{old.name}/before", old.name
    replaced[old] = new


def _numbers(scan: ir.Node, name: str, count: int) -> list[int]:
    """An attribute of a Scan with a number for each of its tensors, all 0 by default."""
    found = scan.attributes.get(name)
    return [0] * count if found is None else list(found.as_ints())


class _Maker:
    """Adds nodes to a graph in front of another node, or at its end."""

    def __init__(self, stem: str, before: ir.Node | None, graph: ir.Graph | None = None) -> None:
        self.stem, self.before, self.count = stem, before, 0
        self.graph: Any = graph if before is None else before.graph

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes)
        self.count += 1
        node.outputs[0].name = f"{self.stem}/{op_type}{self.count}"
        self.put(node)
        return node.outputs[0]

    def put(self, node: ir.Node) -> None:
        if self.before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.before, node)

    def whole(self, number: int) -> ir.Value:
        return self.op("Constant", value=ir.Tensor(np.array(number, np.int64)))

    def row(self, number: int) -> ir.Value:
        return self.op("Constant", value=ir.Tensor(np.array([number], np.int64)))
