"""The latency of a plan, from kernel times of this machine, without a file.

    t = t_float - kernels + k (planned + between + apart) + waiting (1 - share/2) + moving (1 - 3/4 share) + staying

The float model itself is run and profiled: `kernels` is the time of all of its kernels. All other times are from a
`KernelTable`, of kernels that run alone: `planned`, those of the layers, `between`, those of operators on codes
(additions, pools, activations) and of entering and leaving codes, and `apart`, those of activations that are merged
into layers in floats only. `waiting` is what the layers of the float model take longer than alone, where their caches
are warm; if they take less, `k` is their share of the times alone, otherwise 1.

`staying` are operators that run in floats in the file as well. `moving` is what moves values from kernel to kernel:
codes are a quarter of the bytes, for the `share` of the layers' time that does not run in floats. Of `waiting`, about
half is for these bytes, as measured. All times are those of one thread.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.assess.kernel_table import BINARY, Kernel, KernelTable, Runs
from qgraph.graph.layers import INTEGER_OPS, Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import TRANSPARENT_OPS, fused_output, is_transparent, nearest, root
from qgraph.onnxfile.edit import constant
from qgraph.plan.plan import ActivationQuant, QuantPlan
from qgraph.running.profile import KernelTime, kernel_times, least_seconds
from qgraph.running.sessions import Session

_RUNS, _SECONDS = 5, 0.1  # at least, and for how long the float model is run
_SMALLER = 3 / 4  # of the bytes of floats that codes save
_WAITS = 1 / 2  # of the time that kernels wait in company, which goes with these bytes
_CODED = frozenset({"Add", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool", "LeakyRelu", "Sigmoid", "Mul"})
_LAYERS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})  # as onnxruntime names them
_IN_PLACE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})  # moves nothing
_MOVERS = TRANSPARENT_OPS - _IN_PLACE - {"MaxPool"} | {"ReorderInput", "ReorderOutput", "Concat"}
_MERGED = frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "LeakyRelu", "Mul"})  # into a layer in floats
_NAMES = {"QuickGelu": "Swish"}
_ATTRIBUTES = {
    "Conv": ("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad"),
    "Gemm": ("transA", "transB"),
    "MatMul": (),
    "AveragePool": ("kernel_shape", "strides", "pads", "ceil_mode", "count_include_pad", "auto_pad"),
    "MaxPool": ("kernel_shape", "strides", "pads", "ceil_mode", "dilations", "auto_pad"),
    "LeakyRelu": ("alpha",),
}

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """The seconds of a layer's kernel in floats, and as the plan runs it."""

    name: str
    runs: Runs
    float_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """Seconds of one run of the float model, measured, and of the plan's file, foretold; and those of its layers."""

    float_seconds: float
    seconds: float
    layers: tuple[LayerTime, ...]

    @property
    def ratio(self) -> float:
        """The file's time relative to the float model's."""
        return self.seconds / self.float_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatTimes:
    """Seconds of the float model's kernels: of its layers, of what moves values, and of other operators."""

    names: frozenset[str]
    layers: float
    moving: float
    others: Mapping[str, float]

    @classmethod
    def of(cls, view: GraphView, kernels: Sequence[KernelTime], most: float) -> FloatTimes:
        """From the profile of a model whose kernels together take `most` seconds at most."""
        layers = {layer.node for layer in _once(view)}
        nodes = ir.traversal.RecursiveGraphIterator(view.model.graph)
        apart = [f"{node.name}/" for node in nodes if node.op_type in _LAYERS and node not in layers]
        own = min(most / max(sum(kernel.seconds for kernel in kernels), 1e-9), 1.0)
        found = {"layers": 0.0, "moving": 0.0}
        for kernel in kernels:
            layer = kernel.op in _LAYERS and not any(f"{kernel.name}/".startswith(name) for name in apart)
            kind = "layers" if layer else "moving" if kernel.op in _MOVERS else _NAMES.get(kernel.op, kernel.op)
            found[kind] = found.get(kind, 0.0) + own * kernel.seconds
        names = frozenset(kernel.name for kernel in kernels)
        return cls(names=names, layers=found.pop("layers"), moving=found.pop("moving"), others=found)

    @property
    def total(self) -> float:
        return max(self.layers + self.moving + sum(self.others.values()), 1e-9)

    def staying(self, coded: Mapping[str, float], company: float) -> float:
        """The seconds of other operators but those that run on codes, whose times alone are given."""
        return sum(max(seconds - company * coded.get(op, 0.0), 0.0) for op, seconds in self.others.items())


class Foreteller:
    """Foretells plans for one model on the same feeds: the model runs once, kernels are measured once."""

    def __init__(self, view: GraphView, feeds: Feeds, *, table: KernelTable | None = None) -> None:
        self.view, self.table = view, table or KernelTable()
        self.feeds, self.float_seconds = feeds, math.inf
        self.session = Session(view.model.ir_model, threads=1)
        self.kernels = kernel_times(view.model.ir_model, feeds, runs=_RUNS)
        self._run()
        self.shapes = _shapes(view, feeds)
        self.readers = {layer.node: layer for layer in _once(view)}

    def __call__(self, plan: QuantPlan) -> Foretold:
        """The latency of a plan's file."""
        found = self._foretold(plan)
        if self.table.settle(self._run):
            found = self._foretold(plan)
            self.table.save()
        return found

    def _run(self) -> None:
        """Time the float model, and keep its shortest run."""
        seconds = least_seconds(self.session, self.feeds, runs=_RUNS, seconds=_SECONDS)
        self.float_seconds = min(self.float_seconds, max(seconds, 1e-9))
        self.times = FloatTimes.of(self.view, self.kernels, self.float_seconds)

    def _foretold(self, plan: QuantPlan) -> Foretold:
        grids, tensors = plan.operand_grids, {a.tensor: a for a in plan.activations if a.role == "tensor"}
        runs = {q.name: _runs(self.view.by_name[q.name], q.runs, grids) for q in plan.layers}
        layers = tuple(
            self._layer(layer, runs.get(layer.name, "floats"), tensors)
            for layer in self.readers.values()
            if layer.op in INTEGER_OPS and str(layer.input.name) in self.shapes
        )
        between, coded = self._between(tensors, runs)
        merged = [self.view.by_name[layer.name] for layer in layers if layer.runs != "floats"]
        apart = sum(self._apart(layer, lambda node: self._on_codes(node, tensors, runs)) for layer in merged)
        alone, planned = (sum(getattr(layer, n) for layer in layers) for n in ("float_seconds", "seconds"))
        company = min(self.times.layers / alone, 1.0) if alone else 1.0
        waiting = max(self.times.layers - alone, 0.0)
        share = sum(x.float_seconds for x in layers if x.runs != "floats") / max(alone, 1e-12)
        after = company * (planned + between + apart) + self.times.staying(coded, company)
        after += waiting * (1 - _WAITS * share) + self.times.moving * (1 - _SMALLER * share)
        seconds = max(self.float_seconds + after - self.times.total, 1e-9)
        return Foretold(float_seconds=self.float_seconds, seconds=seconds, layers=layers)

    def idle(self, plan: QuantPlan) -> frozenset[str]:
        """The tensors with grids that no layer reads on integers, by name."""
        grids = plan.operand_grids
        runs = {q.name: _runs(self.view.by_name[q.name], q.runs, grids) for q in plan.layers}
        met = (nearest(self.view.by_name[name].input, grids) for name, how in runs.items() if how == "integers")
        read = {grid.tensor for grid in met if grid is not None}
        return frozenset(grids) - read - self._met(plan, read, runs)

    def _met(self, plan: QuantPlan, read: set[str], runs: Mapping[str, Runs]) -> set[str]:
        """The grids of other operators on codes that lead to those that are read, or follow them."""
        tensors = {a.tensor: a for a in plan.activations if a.role == "tensor"}
        found: set[str] = set()
        for node in self.view.nodes:
            if node in self.readers or is_transparent(node) or not self._on_codes(node, tensors, runs):
                continue
            grids = [nearest(v, tensors) for v in node.inputs if v is not None and constant(v) is None]
            names = {grid.tensor for grid in grids if grid is not None}
            names.add(str(fused_output(node.outputs[0]).name))
            found |= names if names & (read | found) else set()
        written = {str(fused_output(self.view.by_name[n].output).name) for n, how in runs.items() if how == "integers"}
        return found | (written & set(tensors))

    def _apart(self, layer: Layer, on_codes: Callable[[ir.Node], bool]) -> float:
        """The seconds of what onnxruntime merges into the layer in floats, but not on integers: activations mostly."""
        shape, pending, chain, total = self.shapes[str(layer.output.name)], [layer.output], set[ir.Value](), 0.0
        merged = _MERGED | {"Add"} if layer.op == "Conv" else _MERGED
        while pending:
            value = pending.pop()
            chain.add(value)
            for node in dict.fromkeys(use.node for use in value.uses() if use.node.name not in self.times.names):
                whole = {v for v in node.inputs if v is not None and constant(v) is None} <= chain
                moves = is_transparent(node) or node.op_type == "Cast"
                if whole and (moves or (node.op_type in merged and not on_codes(node))):
                    total += 0.0 if moves else self.table[Kernel(op=node.op_type, operand=shape)]
                    pending.append(node.outputs[0])
        return total

    def _layer(self, layer: Layer, runs: Runs, tensors: Mapping[str, ActivationQuant]) -> LayerTime:
        given = _attributes(layer.node)
        operand, weight = self.shapes[str(layer.input.name)], tuple(layer.weight_array().shape)
        codes = str(fused_output(layer.output).name) in tensors

        def seconds(how: Runs) -> float:
            plain = how != "integers" or codes
            return self.table[
                Kernel(op=layer.op, operand=operand, weight=weight, attributes=given, runs=how, codes=plain)
            ]

        floats = seconds("floats")
        return LayerTime(
            name=layer.name, runs=runs, float_seconds=floats, seconds=floats if runs == "floats" else seconds(runs)
        )

    def _between(
        self, tensors: Mapping[str, ActivationQuant], runs: Mapping[str, Runs]
    ) -> tuple[float, dict[str, float]]:
        """The seconds of other operators on codes and of the borders of codes; those of these operators in floats."""
        total, sums, entered, left = 0.0, dict[str, float](), set[str](), set[str]()
        for node in self.view.nodes:
            whole = self._on_codes(node, tensors, runs)
            if whole and node.op_type in _CODED and (kernel := self._kernel(node)) is not None:
                on_codes = self.table[dataclasses.replace(kernel, runs="integers")]
                before = self._in_floats(node, kernel)
                if math.isfinite(on_codes + before):  # else it does not run alone
                    total += on_codes
                    name = "Swish" if _is_swish(node) else node.op_type
                    sums[name] = sums.get(name, 0.0) + before
            for value in node.inputs:
                if value is None or constant(value) is not None or (grid := nearest(value, tensors)) is None:
                    continue
                producer = root(value).producer()
                made = producer is not None and self._on_codes(_before(producer), tensors, runs)
                (entered if whole and not made else left if made and not whole else set()).add(grid.tensor)
        for op, names in (("QuantizeLinear", entered), ("DequantizeLinear", left)):
            for name in names:
                if shape := self.shapes.get(name):
                    total += self.table[Kernel(op=op, operand=shape)]
        return total, sums

    def _kernel(self, node: ir.Node) -> Kernel | None:
        """The kernel of an operator that is no layer, in floats; None for Concat and where shapes are not known."""
        shapes = [self.shapes.get(str(v.name)) for v in node.inputs if v is not None]
        first, *rest = shapes or [None]
        if first is None or node.op_type == "Concat" or any(shape is None for shape in rest):
            return None
        if node.op_type not in BINARY:
            return Kernel(op=node.op_type, operand=first, attributes=_attributes(node))
        large, small = sorted((first, rest[0] or ()), key=np.prod, reverse=True)
        return Kernel(op=node.op_type, operand=large, weight=() if large == small else small)

    def _in_floats(self, node: ir.Node, kernel: Kernel) -> float:
        """The seconds of an operator in floats; a Sigmoid that onnxruntime merges into a product costs nothing."""
        if node.op_type == "Sigmoid" and any(_is_swish(use.node) for use in node.outputs[0].uses()):
            return 0.0
        return self.table[dataclasses.replace(kernel, op="Swish") if _is_swish(node) else kernel]

    def _on_codes(self, node: ir.Node, tensors: Mapping[str, ActivationQuant], runs: Mapping[str, Runs]) -> bool:
        """Whether a node reads and writes codes, or moves them."""
        layer = self.readers.get(node)
        if layer is not None:
            return runs.get(layer.name) == "integers"
        if is_transparent(node):
            return True
        read = [v for v in node.inputs if v is not None]  # constants have no grids
        written = str(fused_output(node.outputs[0]).name) in tensors
        return node.op_type in _CODED and written and all(nearest(v, tensors) is not None for v in read)


def _runs(layer: Layer, asked: str, grids: Mapping[str, ActivationQuant]) -> Runs:
    """How a layer runs: on integers only where it reads codes. Products in blocks of codes are taken for floats."""
    if asked == "integers" and nearest(layer.input, grids) is not None:
        return "integers"
    return "dynamic" if asked == "dynamic" else "floats"


def _attributes(node: ir.Node) -> tuple[tuple[str, Any], ...]:
    wanted = _ATTRIBUTES.get(node.op_type, ())
    return tuple((name, _plain(a.value)) for name, a in node.attributes.items() if name in wanted)


def _is_swish(node: ir.Node) -> bool:
    """Whether a node computes x Sigmoid(x)."""
    sides = [v for v in node.inputs if v is not None]
    if node.op_type != "Mul" or len(sides) != 2:
        return False
    return any(
        (p := b.producer()) is not None and p.op_type == "Sigmoid" and p.inputs[0] is a for a, b in (sides, sides[::-1])
    )


def _before(node: ir.Node) -> ir.Node:
    """The node in front of a Relu or Clip that is merged into it; any other node itself."""
    while node.op_type in ("Relu", "Clip") and node.inputs[0] is not None:
        producer = node.inputs[0].producer()
        if producer is None or fused_output(node.inputs[0]) is not node.outputs[0]:
            return node
        node = producer
    return node


def _once(view: GraphView) -> list[Layer]:
    """The layers that run once; those in bodies of Loop and Scan count as a part of these."""
    return [layer for layer in view.observed if not layer.in_steps]


def _shapes(view: GraphView, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """The shapes of what layers read, and of every sum and tensor that may get a grid, on these feeds.

    Tensors of a branch that these feeds do not take have none, and their layers take no time; nor have those of a loop,
    which has a value for every step.
    """
    layers = _once(view)
    names = {str(v.name) for layer in layers for v in (layer.input, root(layer.input))}
    outputs = [layer.output for layer in layers]
    names |= {str(v.name) for output in outputs for v in (output, fused_output(output))}
    for node in view.nodes:
        if node.op_type in _CODED:
            names |= {str(node.outputs[0].name), str(fused_output(node.outputs[0]).name)}
            names |= {str(v.name) for v in node.inputs if v is not None and constant(v) is None}
    inputs = {str(v.name) for v in view.model.input_values()}
    found = {name: tuple(np.shape(array)) for name, array in feeds.items() if name in inputs}
    inner = sorted(name for name in names - inputs if name in view.values)
    if inner:
        session = Session(view.model.ir_model, outputs=inner, threads=1)
        seen = {name: value for name, value in session.run(feeds).items() if isinstance(value, np.ndarray)}
        found |= {name: value.shape for name, value in seen.items() if value.size}
    return found


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
