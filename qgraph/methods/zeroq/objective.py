"""The objective of distillation: a session that returns the loss and gradients of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from qgraph.errors import DataError, ModelError, NothingToDistilError
from qgraph.gradient import Builder, gradient_name, gradients
from qgraph.gradient.step import OPSET
from qgraph.methods.zeroq.assumed_statistics import assumed_targets
from qgraph.methods.zeroq.config import Per
from qgraph.methods.zeroq.loss import LOSS, MEAN, STD, Target, standard, target_of, with_loss
from qgraph.methods.zeroq.spectrum import natural_noise
from qgraph.methods.zeroq.statistics import BatchNorm, batch_norms
from qgraph.onnxfile.folding import fold_batch_normalization
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import raise_opset
from qgraph.onnxfile.shapes import infer_shapes
from qgraph.running.sessions import Session
from qgraph.running.wording import Blank, option
from qgraph.samples import layout

_COPIES = 4  # of every tensor of the forward pass that a step holds: values, squares, and gradients of both
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """The loss and its gradients, and the mean and standard deviation of every channel that it compares."""

    loss: float
    gradients: Arrays
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """Computes the loss and gradients of a batch of `shapes`; safe to call from several threads.

    `layers` counts the BatchNormalizations that the loss compares with, 0 if it uses estimated statistics.
    """

    session: Session
    shapes: Mapping[str, tuple[int, ...]]
    layers: int

    def __call__(self, batch: Arrays) -> Step:
        values = self.session.run(batch)
        mean, std = (
            np.concatenate([np.ravel(row) for name, row in values.items() if name.startswith(f"{kind}/")])
            for kind in (MEAN, STD)
        )
        gradients = {name: values[gradient_name(name)] for name in self.shapes}
        return Step(loss=float(values[LOSS].item()), gradients=gradients, mean=mean, std=std)


def has_batch_norms(model: Model) -> bool:
    """Whether the model contains BatchNormalization statistics to distil from."""
    return bool(batch_norms(normalise(model, fold_bn=False).ir_model))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepModel:
    """A graph that computes the loss and gradients of a batch of `shapes`."""

    model: ir.Model
    shapes: Mapping[str, tuple[int, ...]]
    layers: int


def objective(
    model: Model,
    *,
    batch: int,
    per: Per,
    threads: int | None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
    builder: Builder | None = None,
) -> Objective:
    """Build the `step_model` and load it."""
    step = step_model(model, batch=batch, per=per, shapes=shapes, batch_axes=batch_axes, builder=builder)
    return Objective(session=Session(step.model, threads=threads), shapes=step.shapes, layers=step.layers)


def step_model(
    model: Model,
    *,
    batch: int,
    per: Per,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
    builder: Builder | None = None,
) -> StepModel:
    """Build the loss over all BatchNormalizations and the inputs, and differentiate it.

    A BatchNormalization after a convolution is folded into it, which saves a pass over the activations in either
    direction; the loss then judges the folded output. A model without BatchNormalization is compared with estimated
    statistics. Raises `ModelError` if there are none.
    """
    plain = normalise(model, fold_bn=False)
    norms = batch_norms(plain.ir_model)
    inputs = input_shapes(plain, batch=batch, shapes=shapes, batch_axes=batch_axes)
    net = plain.ir_model.clone()
    fold_batch_normalization(net)
    passes.RemoveUnusedNodesPass()(net)
    if plain.opset < OPSET:
        net = raise_opset(replace(plain, ir_model=net), OPSET).ir_model
    _fix_shapes(net, inputs)
    targets = _targets(net, norms) if norms else assumed_targets(net, natural_noise(inputs, seed=0))
    if not targets:
        raise ModelError(f"{model.source} has no BatchNormalization to distil data from, kept or folded")
    targets += [standard(name, shape[1]) for name, shape in inputs.items() if len(shape) > 1]
    step = gradients(with_loss(net, targets, per=per), LOSS, list(inputs), builder=builder)
    return StepModel(model=step, shapes=inputs, layers=len(norms))


def step_bytes(
    model: Model,
    *,
    batch: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
) -> int:
    """About the bytes that a step on a batch holds per sample."""
    net = normalise(model).ir_model.clone()
    inputs = input_shapes(model, batch=batch, shapes=shapes, batch_axes=batch_axes)
    axes = layout.batch_axes(model.input_values(), batch_axes or {})
    samples = min((inputs[name][axis] for name, axis in axes.items() if axis is not None), default=1)
    _fix_shapes(net, inputs)
    shapes_known = (value.shape for node in net.graph for value in node.outputs)
    sizes = [prod(shape.numpy()) for shape in shapes_known if shape is not None and shape.is_static()]
    return _COPIES * 4 * sum(sizes) // max(samples, 1)


def _targets(net: ir.Model, norms: list[BatchNorm]) -> list[Target]:
    tensors = {str(v.name) for node in net.graph for v in (*node.inputs, *node.outputs) if v is not None}
    return [target_of(norm, tensors) for norm in norms]


def input_shapes(
    model: Model,
    *,
    batch: int,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The shape of a batch for every input, with `batch` samples where the model leaves the axis of a batch open.

    `batch_axes` has the axes that are not to be guessed. Raises `DataError` for integer inputs and for sizes that
    neither the model nor `shapes` gives.
    """
    found = {}
    axes = layout.batch_axes(model.input_values(), batch_axes or {})
    for value in model.input_values():
        name = str(value.name)
        if value.dtype != ir.DataType.FLOAT:
            raise NothingToDistilError(
                f"input '{name}' of {model.source} is of type {value.dtype}: only float inputs can be distilled; "
                f"give {option('data')}"
            )
        given = list((shapes or {}).get(name, value.shape or ()))
        sizes = [batch if i == axes[name] and not isinstance(d, int) else d for i, d in enumerate(given)]
        wanted = tuple(d if isinstance(d, int) else Blank("N") for d in sizes) or (Blank("N"),)
        unknown = [i for i, d in enumerate(sizes) if not isinstance(d, int)]
        if unknown or not sizes:
            raise DataError(
                f"input '{name}' of {model.source} has shape {value.shape}: the size of axis {unknown or 'all'} "
                f"is not fixed; give it with {option('shapes', {name: wanted})} "
                f"(a number for every N), or give {option('data')}"
            )
        found[name] = tuple(int(d) for d in sizes if isinstance(d, int))
    return found


def _fix_shapes(net: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Fix the shapes of inputs and infer all others: static shapes save shape arithmetic at every step."""
    for value in net.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[str(value.name)])
    for node in net.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(net)
