"""plan -> the graph to deploy (`--format qdq`): QuantizeLinear/DequantizeLinear pairs and packed weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qgraph.errors import PlanError
from qgraph.graph.sites import GraphView
from qgraph.lowering.compact import compact
from qgraph.lowering.emitter import QdqEmitter
from qgraph.lowering.places import producers, put_in_place
from qgraph.onnxfile.edit import add_initializer, append_node, constant
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan
from qgraph.running.wording import option


def export(model: Model, plan: QuantPlan, *, packed: bool = True) -> ir.Model:
    """The deployable model, with the interface of `model` and integers where onnxruntime has kernels for them.

    Without `packed`, weights of few bits take a byte each: the same numbers, in a graph that is made and loaded faster.
    """
    view = GraphView(model)
    plan.check_model(model.digest, model.source)
    _check_groups(plan)
    _check_shifts(plan)
    _check_factors(plan, view)

    def emitter(graph: ir.Graph) -> QdqEmitter:
        return QdqEmitter(graph, producers(plan, view), packed=packed, whole_biases=plan.portable)

    net = put_in_place(model, plan, emitter)
    _spread_dilated_pools(net.graph)
    compact(net, known=[*view.values, *(str(node.name) for node in model.graph)])
    return net


def _check_groups(plan: QuantPlan) -> None:
    """Raise `PlanError` where groups share a scale that is no whole multiple of a unit of their channel."""
    for quant in plan.layers:
        if quant.weight.granularity.group is not None and not quant.weight.unit:
            raise PlanError(
                f"layer '{quant.name}' has a scale {quant.weight.granularity}, and no unit per channel of which it is "
                f"a multiple: give it one (qmath.group_grids), or pass {option('format', 'float')} to simulate it"
            )


def _check_shifts(plan: QuantPlan) -> None:
    """Raise `PlanError` where weights lie between the steps of their grid."""
    for quant in plan.layers:
        if any(quant.weight.shift):
            raise PlanError(
                f"layer '{quant.name}' adds a fraction of a step to its weights, which no integer kernel can: pass "
                f"{option('format', 'float')} to simulate it, or correct means with {option('settings')} "
                f"aciq.means=inputs"
            )


def _spread_dilated_pools(graph: ir.Graph) -> None:
    """Dequantize the input of an AveragePool with dilations by plain operators.

    onnxruntime would otherwise turn it into an integer kernel that has no dilations, and refuse to load the file.
    """
    for node in [n for n in graph if n.op_type == "AveragePool" and n.domain == "" and "dilations" in n.attributes]:
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        scale, zero_point = constant(source.inputs[1]), constant(source.inputs[2])
        if scale is None or zero_point is None:
            continue
        codes = append_node(graph, "Cast", source.inputs[:1], {"to": ir.DataType.FLOAT}).outputs[0]
        point = add_initializer(graph, "pool/zero_point", zero_point.astype(np.float32))
        steps = append_node(graph, "Sub", [codes, point], {}).outputs[0]
        node.replace_input_with(0, append_node(graph, "Mul", [steps, source.inputs[1]], {}).outputs[0])
    graph.sort()


def _check_factors(plan: QuantPlan, view: GraphView) -> None:
    """Raise `PlanError` unless the factors of every tensor are in the weights on both sides of it."""
    factors = {a.tensor: a.channel_scale for a in plan.activations if a.channel_scale}
    written = {a.tensor for a in producers(plan, view).values()}
    read: set[str] = set()
    for quant in (quant for quant in plan.layers if quant.runs != "dynamic"):
        tensor = str(view.by_name[quant.name].input.name) if quant.name in view.by_name else ""
        read.add(tensor)
        if quant.weight.input_scale != factors.get(tensor, ()):
            raise PlanError(
                f"layer '{quant.name}' reads '{tensor}', whose channel_scale is not its weight's input_scale: a "
                f"deployable plan has both or neither; pass {option('format', 'float')} to simulate one step per "
                f"channel"
            )
    lost = sorted(set(factors) - (written & read))
    if lost:
        raise PlanError(
            f"no quantized layer can carry the channel_scale of '{lost[0]}': pass {option('format', 'float')}"
        )
