"""plan -> the graph in either format."""

from __future__ import annotations

import onnx_ir as ir

from qgraph.lowering.export import export
from qgraph.lowering.simulate import simulate
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan


def lower(net: Model, plan: QuantPlan, *, format: str, packed: bool = True) -> ir.Model:
    """Turn the plan into nodes in the given format; `packed` as in `export`."""
    return export(net, plan, packed=packed) if format == "qdq" else simulate(net, plan)
