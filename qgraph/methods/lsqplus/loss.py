"""Append the loss that training minimises to the training graph.

Where an output holds one score per class, the loss of a batch is the sum over its samples of

    label_weight CE(label, z) + (1 - label_weight) T^2 KL(softmax(t / T) || softmax(z / T))

with logits z, and t those of the float model. For other outputs it is the mean squared distance from the float model's
output, relative to the mean square of that; every sample has weight 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.gradient import Expr, append, op, tensor
from qgraph.gradient.step import LOSS
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.onnxfile.readable import type_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The tensors in the loss: logits of shape N x classes, and outputs that follow the float model's."""

    logits: str | None
    classes: int
    followed: tuple[str, ...]
    probabilities: bool = False
    """Whether `logits` are probabilities after all: those of a network whose Softmax lies further up."""

    @property
    def watched(self) -> tuple[str, ...]:
        """The tensors of the float model that training needs."""
        return (*((self.logits,) if self.logits else ()), *self.followed)


def targets_of(net: ir.Model, source: str) -> Targets:
    """The first output with one score per class (before its Softmax, if it has one), and all other float outputs."""
    made = [v for v in net.graph.outputs if v.producer() is not None]  # not a weight or an input that is an output
    outputs = [v for v in made if v.type == ir.TensorType(ir.DataType.FLOAT)]
    if not outputs:
        found = ", ".join(f"'{v.name}' is {type_text(v)}" for v in net.graph.outputs)
        raise DataError(
            f"{source} has no output of type float32 to learn from ({found}): export it with scores or other floats "
            f"as an output (from scikit-learn with zipmap=False)"
        )
    scores = next((v for v in outputs if _classes(v) > 1), None)
    followed = tuple(str(v.name) for v in outputs if v is not scores)
    if scores is None:
        return Targets(logits=None, classes=0, followed=followed)
    producer = scores.producer()
    soft = producer is not None and producer.op_type in ("Softmax", "LogSoftmax") and producer.inputs[0] is not None
    logits = producer.inputs[0] if producer is not None and soft else scores
    return Targets(logits=str(logits.name if logits is not None else ""), classes=_classes(scores), followed=followed)


def append_loss(net: ir.Model, targets: Targets, config: LsqPlusConfig, *, batch: int, labelled: bool) -> None:
    """Add the inputs `labels` (N x classes, one-hot) and `float:NAME`, and the output `loss`."""
    values = ir.convenience.create_value_mapping(net.graph)
    weight = config.label_weight if labelled else 0.0
    terms: list[Expr] = []
    if targets.logits is not None:
        shape = (batch, targets.classes)
        logits = _logits(tensor(values[targets.logits]), targets)
        if weight > 0:
            labels = tensor(_input(net, "labels", shape))
            terms.append(-op.ReduceSum(labels * op.LogSoftmax(logits, axis=-1), keepdims=0) * weight)
        if weight < 1:
            t = config.temperature
            given = tensor(_input(net, f"float:{targets.logits}", shape))
            wanted, found = _logits(given, targets) * (1 / t), logits * (1 / t)
            gap = op.LogSoftmax(wanted, axis=-1) - op.LogSoftmax(found, axis=-1)
            divergence = op.ReduceSum(op.Softmax(wanted, axis=-1) * gap, keepdims=0)
            terms.append(divergence * (t * t * (1.0 - weight)))
    for name in targets.followed:
        value = values[name]
        wanted = tensor(_input(net, f"float:{name}", tuple(value.shape or ())))
        difference = tensor(value) - wanted
        power = op.ReduceSum(wanted * wanted, keepdims=0) + 1e-12
        terms.append(op.ReduceSum(difference * difference, keepdims=0) / power * float(batch))
    append(net, reduce(op.Add, terms), name=LOSS)
    net.graph.outputs[:] = [net.graph.outputs[-1]]


def _logits(scores: Expr, targets: Targets) -> Expr:
    return op.Log(scores + 1e-12) if targets.probabilities else scores


def one_hot(labels: NDArray[np.integer], classes: int) -> NDArray[np.float32]:
    """Labels as one-hot rows; raises `DataError` for a label that is not a class."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(f"label {labels[first]} is no class: the model has {classes}, numbered from 0")
    return np.eye(classes, dtype=np.float32)[labels]


def _input(net: ir.Model, name: str, shape: tuple[object, ...]) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))  # type: ignore[arg-type]
    net.graph.inputs.append(value)
    return value


def _classes(value: ir.Value) -> int:
    shape = value.shape
    return shape[1] if shape is not None and len(shape) == 2 and isinstance(shape[1], int) else 0
