"""The float network with a switch at every grid of a plan, which measures any set of grids without a new session.

    tensor:  x -> if switch: Q(x) else x          weight:  W -> where(switch, Q(W), W)

The operand of a dynamic layer, whose grid is in no plan, has a switch for each layer that reads it. A grid that is off
is not computed. A weight behind a switch is no constant, which makes its kernel slow, so that weights only have
switches where they are asked for.

With all switches off it is the float network; with one switch on, the outputs show the error of that grid alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.lowering.places import put_in_place
from qgraph.lowering.simulate import FloatEmitter
from qgraph.onnxfile.edit import add_initializer, constant, unique_name
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, order=True)
class Grid:
    """A grid of a plan by name: of a layer's weight, of a tensor, or of what a dynamic layer reads."""

    kind: Literal["weight", "tensor", "operand"]
    name: str


def grids_of(plan: QuantPlan) -> tuple[Grid, ...]:
    """All grids of a plan; the two grids that a tensor may have count as one."""
    tensors = dict.fromkeys(Grid("tensor", a.tensor) for a in plan.activations)
    operands = (Grid("operand", layer.name) for layer in plan.layers if layer.runs == "dynamic")
    return *tensors, *operands, *(Grid("weight", layer.name) for layer in plan.layers)


class Switches:
    """Measures the error that any set of a plan's grids makes at the outputs of a network; `weights`: theirs too.

    `expected` are the float outputs of the batches, where they are known already.
    """

    def __init__(
        self,
        net: Model,
        plan: QuantPlan,
        batches: Sequence[Batch],
        *,
        weights: bool = True,
        expected: Sequence[Sequence[Any]] = (),
        threads: int | None = None,
    ) -> None:
        # bias shifts correct errors of weights and have no switch
        plain = plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=()))
        emitters: list[_SwitchedEmitter] = []

        def make(graph: ir.Graph) -> _SwitchedEmitter:
            emitters.append(_SwitchedEmitter(graph, weights=weights))
            return emitters[-1]

        model = put_in_place(net, plain, make)
        for choice in emitters[0].choices:
            _compute_if_on(model.graph, choice)
        self.session = Session(model, threads=threads)
        self.inputs = emitters[0].inputs
        self.batches = batches
        self.expected = expected or [self._run(batch, ()) for batch in batches]

    def noise(self, on: Collection[Grid]) -> Floats:
        """The error of every output with these grids switched on, as power relative to the output's own.

        Infinite where the output is no longer finite or changes its shape; 0 for outputs that are not floating point.
        """
        signal, error = np.zeros((2, len(self.session.output_names)))
        for batch, want in zip(self.batches, self.expected, strict=True):
            powers = self._powers(batch, want, self._run(batch, on))
            signal, error = signal + powers[0], error + powers[1]
        usable = (signal > 0) & np.isfinite(signal)
        return np.where(np.isfinite(error), np.divide(error, signal, out=np.zeros_like(error), where=usable), np.inf)

    def _run(self, batch: Batch, on: Collection[Grid]) -> list[NDArray[Any]]:
        switches = {name: np.array(grid in on) for grid, name in self.inputs.items()}
        return self.session.run_list({**batch.feeds, **switches})

    def _powers(self, batch: Batch, want: Sequence[Any], have: list[Any]) -> tuple[Floats, Floats]:
        signal, error = np.zeros(len(want)), np.zeros(len(want))
        for index, (a, b) in enumerate(zip(want, have, strict=True)):
            exact, small = batch.real(a), batch.real(b)
            if exact.dtype.kind != "f":
                continue
            exact = exact.astype(np.float64)
            finite = np.isfinite(exact)  # values that overflow in the float network do not count
            signal[index] = np.square(exact[finite]).sum()
            if exact.shape != small.shape or not np.isfinite(small[finite]).all():
                error[index] = np.inf
            else:
                error[index] = np.square(small[finite] - exact[finite]).sum()
        return signal, error


class _SwitchedEmitter(FloatEmitter):
    """The float emitter with a Boolean graph input that switches every grid."""

    def __init__(self, graph: ir.Graph, *, weights: bool) -> None:
        super().__init__(graph)
        self.weights = weights
        self.inputs: dict[Grid, str] = {}
        self.switches: dict[Grid, ir.Value] = {}
        self.choices: list[ir.Node] = []

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        if not self.weights:
            return layer.weight
        quantized, plain = super().weight(layer, quant, operand), layer.weight
        array = constant(plain)
        if plain.graph is not self.graph and array is not None:  # a constant of a body, which nothing outside can read
            plain = add_initializer(self.graph, str(plain.name), array)
        return self._either(Grid("weight", layer.name), quantized, plain)

    def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        return self._choice(Grid("tensor", quant.tensor), super().activation(value, quant), value)

    def operand_at_hand(self, layer: Layer, quant: LayerQuant) -> ir.Value:
        self.at_hand.clear()  # every layer has nodes of its own, which its switch turns off
        return self._choice(Grid("operand", layer.name), super().operand_at_hand(layer, quant), layer.input)

    def _choice(self, grid: Grid, quantized: ir.Value, plain: ir.Value) -> ir.Value:
        result = self._either(grid, quantized, plain)
        self.choices.append(result.producer())  # type: ignore[arg-type]
        result.shape, result.type = plain.shape, plain.type
        return result

    def _either(self, grid: Grid, quantized: ir.Value, plain: ir.Value) -> ir.Value:
        return self.op("Where", self._switch(grid), quantized, plain)

    def _switch(self, grid: Grid) -> ir.Value:
        if grid not in self.switches:
            name = f"switch {len(self.switches)}"
            value = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
            self.graph.inputs.append(value)
            self.switches[grid], self.inputs[grid] = value, name
        return self.switches[grid]


def _compute_if_on(graph: ir.Graph, where: ir.Node) -> None:
    """Replace Where(switch, Q(x), x) by If(switch), with the nodes of Q in one branch and a copy of x in the other."""
    switch, quantized, plain = where.inputs
    result, here = where.outputs[0], where.graph
    if quantized is None or plain is None or not isinstance(here, ir.Graph):  # the grid is not used
        return
    nodes = _between(quantized, plain)
    copied = ir.node("Identity", [plain])
    copied.outputs[0].name = unique_name(graph, f"{plain.name}/same")
    for value in (quantized, copied.outputs[0]):
        value.type, value.shape = plain.type, plain.shape
    chosen = ir.node("If", [switch], num_outputs=1)
    here.insert_before(where, chosen)
    name = result.name
    result.replace_all_uses_with(chosen.outputs[0], replace_graph_outputs=True)
    here.remove([where, *nodes], safe=False)
    where.replace_input_with(1, None)
    where.replace_input_with(2, None)
    result.name, chosen.outputs[0].name = f"{name}/gone", name
    chosen.outputs[0].type, chosen.outputs[0].shape = plain.type, plain.shape
    branches = {"then_branch": ([*reversed(nodes)], quantized), "else_branch": ([copied], copied.outputs[0])}
    for key, (inside, output) in branches.items():
        branch = ir.Graph([], [output], nodes=inside, name=key, opset_imports=graph.opset_imports)
        branch.sort()
        chosen.attributes[key] = ir.AttrGraph(key, branch)


def _between(result: ir.Value, source: ir.Value) -> list[ir.Node]:
    """The nodes that compute `result` from `source` and constants."""
    found, pending = dict[ir.Node, None](), [result]
    while pending:
        value = pending.pop()
        node = None if value is source else value.producer()
        if node is not None:
            found[node] = None
            pending += [v for v in node.inputs if v is not None]
    return list(found)
