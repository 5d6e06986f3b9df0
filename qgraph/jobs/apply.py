"""A plan that exists, applied to its model."""

from __future__ import annotations

from qgraph.assess.verify import verify
from qgraph.lowering.lower import lower
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.opset import prepare
from qgraph.plan.plan import QuantPlan


def apply(model: ModelLike, plan: QuantPlan, *, format: str = "qdq", opset: int | None = None) -> Model:
    """The model quantized as a plan says, loaded once in onnxruntime; the same bytes as the `quantize` of the plan."""
    net = prepare(model, opset=opset, fold_bn=plan.fold_bn)
    lowered = lower(net, plan, format=format)
    verify(lowered, net, None)
    return Model(ir_model=lowered, source=net.source, nbytes=net.nbytes, digest=net.digest)
