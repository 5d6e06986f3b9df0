"""Lay a network open: the arrays of its layers, and how far its outputs move with other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import ModelError, UsageError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.jobs.distil import DISTILLED, distilled_samples
from qgraph.jobs.given import open_given
from qgraph.observe.distance import Reference
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Reading
from qgraph.samples.fallback import falling_back

Weights = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbedLayer:
    """The arrays of one layer: what it multiplies, and with what.

    `weight` has its output channels along `axis`; `operand` are the values of the tensor `tensor` for all samples, the
    channels that the layer sums over along `operand_axis`. `non_negative`: the graph rules out negative operands.
    """

    name: str
    op: str
    weight: NDArray[np.float32]
    axis: int
    tensor: str
    operand_axis: int
    non_negative: bool
    probe: Probe

    @cached_property
    def operand(self) -> NDArray[Any]:
        return self.probe.tensor(self.tensor)

    def __repr__(self) -> str:
        return f"ProbedLayer({self.name}: {self.op}, weight {self.weight.shape}, reads {self.tensor})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Probe:
    """A network with its layers as arrays, which computes its outputs with other weights; `qgraph.probe` makes one.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> net = qgraph.probe(demo / "digits.onnx", demo / "digits_calibration.npz", limit=8)
        >>> net.samples, net.kinds
        (8, {'logits': 'kl'})
        >>> net.outputs({"classifier": 0 * net.layers["classifier"].weight})["logits"].shape
        (8, 10)
    """

    net: Model
    view: GraphView
    reference: Reference

    @cached_property
    def layers(self) -> Mapping[str, ProbedLayer]:
        """The layers with a constant weight that read what samples determine, by name, in the order of the graph."""
        return {layer.name: self._laid_open(layer) for layer in self.view.layers}

    @property
    def samples(self) -> int:
        return self.reference.samples

    @property
    def kinds(self) -> Mapping[str, str]:
        """How each output is compared: `kl` (class scores) or `nse` (squared error over squared output)."""
        return self.reference.kinds

    def _laid_open(self, layer: Layer) -> ProbedLayer:
        tensor, axis = layer.operand_channels
        return ProbedLayer(
            name=layer.name,
            op=layer.op,
            weight=layer.weight_array(),
            axis=layer.output_axis,
            tensor=tensor,
            operand_axis=axis,
            non_negative=self.view.non_negative.get(str(self.view.root(layer.input).name), False),
            probe=self,
        )

    def tensor(self, name: str) -> NDArray[Any]:
        """The values of any tensor of the network for all samples."""
        if name in self.reference.batches[0].feeds:
            return np.concatenate([batch.real(batch.feeds[name]) for batch in self.reference.batches])
        session = Session(self.net.ir_model, outputs=[name])
        return np.concatenate([b.real(session.run(b.feeds)[name]) for b in self.reference.batches])

    def outputs(self, weights: Weights | None = None) -> dict[str, NDArray[Any]]:
        """The outputs for all samples, with other weights for some layers."""
        fed = self._fed(weights or {})
        runs = [(batch, self._open.run({**batch.feeds, **fed})) for batch in self.reference.batches]
        return {name: np.concatenate([b.real(run[name]) for b, run in runs]) for name in self._open.output_names}

    def distance(self, weights: Weights | None = None) -> float:
        """How far the outputs move with other weights for some layers, by layer.

        The mean KL divergence of class scores from the float network's (ZeroQ, Eq. 2), in nats, and the relative
        squared error of every other output, summed over outputs.
        """
        fed = self._fed(weights or {})
        return self.reference.distance(self._open, [{**batch.feeds, **fed} for batch in self.reference.batches])

    def _fed(self, weights: Weights) -> dict[str, NDArray[np.float32]]:
        """What the open network reads as weights: those given, and its own."""
        fed = dict(self._own)
        for name, array in weights.items():
            own = self.layers.get(name)
            if own is None or own.weight.shape != np.shape(array):
                found = "there is no such layer" if own is None else f"{np.shape(array)} is not {own.weight.shape}"
                raise UsageError(f"the weights for '{name}' do not fit the network: {found}")
            fed[str(self.view.by_name[name].weight.name)] = np.asarray(array, np.float32)
        return fed

    @cached_property
    def _own(self) -> dict[str, NDArray[np.float32]]:
        return {str(layer.weight.name): layer.weight_array() for layer in self.view.layers}

    @cached_property
    def _open(self) -> Session:
        """The network with the weights of its layers as inputs."""
        net = self.net.ir_model.clone()
        for name in self._own:
            stored = net.graph.initializers.pop(name)
            fed = ir.Value(name=name, type=stored.type, shape=stored.shape)
            stored.replace_all_uses_with(fed)
            net.graph.inputs.append(fed)
        return Session(net)


@keeps_threads
def probe(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    opset: int | None = None,
    threads: int | None = None,
    **reading: Unpack[Reading],
) -> Probe:
    """Open a network for experiments: weights and operands of its layers as arrays, outputs with other weights.

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model.
        data: samples; by default distilled from the model.
        preprocessing, limit, batch, shapes, batch_axes, opset, threads: as in `quantize`.

    Raises:
        QGraphError: something is wrong with the model or the data; the message says what to do.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph, qmath
        >>> demo = files("qgraph") / "demo_assets"
        >>> net = qgraph.probe(demo / "digits.onnx", demo / "digits_calibration.npz", limit=32)
        >>> layer = net.layers["residual/first/conv"]
        >>> layer.weight.shape, layer.operand.shape
        ((32, 32, 3, 3), (32, 32, 8, 8))
        >>> rounded = qmath.fake_quantize(layer.weight, qmath.Grid.symmetric(abs(layer.weight).max(), bits=2))
        >>> net.distance({layer.name: rounded}) > 1e6 * net.distance()
        True
    """
    given = open_given(model, data, opset=opset, **reading)
    samples = given.samples
    if samples is None:
        samples = distilled_samples(given, Job(threads=threads), reading, count=reading.get("limit") or DISTILLED)
    view = GraphView(given.net)
    if not view.layers:
        raise ModelError(f"{given.net.source} has no layer to quantize whose weight is multiplied by what samples give")
    _, reference = falling_back(given.net, samples, lambda s: Reference.of(given.net, s, samples=s.count))
    return Probe(net=given.net, view=view, reference=reference)
