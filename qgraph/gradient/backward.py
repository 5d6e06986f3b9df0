"""Loss and gradients of a model, ready to run: the backward graph in a session, weight gradients in a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.gradient.build import deferred_gradients, gradient_name
from qgraph.gradient.contraction import weight_gradients
from qgraph.onnxfile.model import ModelLike
from qgraph.running.sessions import Feeds, Session

Arrays = dict[str, NDArray[Any]]


class Backward:
    """A function from feeds to a model's outputs and gradients.

    It computes the same as `gradients`, several times faster if the weights of convolutions are in `wrt`: their
    gradients are contracted outside the graph (`contraction`). Whatever changes between steps should be an input of the
    model; an initializer is a fixed part of the session.

    Args:
        model: an onnx-ir model, a ModelProto or a path; it is not changed.
        loss: a tensor of one element.
        wrt: names of float inputs, initializers or inner tensors.
        threads: by default all cores. Gradients of weights do not depend on it.

    Raises:
        GradientError: As `gradients`.

    Example:
        >>> import numpy as np
        >>> import onnx
        >>> from qgraph.gradient import Backward
        >>> model = onnx.parser.parse_model(
        ...     '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float loss)'
        ...     "{ square = Mul(x, x) loss = ReduceSum<keepdims = 0>(square) }"
        ... )
        >>> step = Backward(model, "loss", ["x"])
        >>> outputs, found = step({"x": np.array([1, 2], np.float32)})
        >>> float(outputs["loss"]), found["x"].tolist()
        (5.0, [2.0, 4.0])
    """

    def __init__(self, model: ModelLike, loss: str, wrt: Sequence[str], *, threads: int | None = None) -> None:
        made = deferred_gradients(model, loss, wrt)
        self.outputs = tuple(str(v.name) for v in made.outputs)
        self.wrt = tuple(str(v.name) for v in made.wrt)
        self._threads = threads or qmath.get_threads()
        self._contractions = [(str(c.weight.name), str(c.x.name), str(c.dy.name), c) for c in made.contractions]
        self._session = Session(made.model, threads=self._threads)
        self._pool = ThreadPoolExecutor(max(self._threads - 1, 1))

    def __call__(self, feeds: Feeds) -> tuple[Arrays, Arrays]:
        """The model's outputs, the loss among them, and dL/dw for every w in `wrt`, by name and shaped like w."""
        values = {**feeds, **self._session.run(feeds)}
        found = {name: values[key] for name in self.wrt if (key := gradient_name(name)) in values}
        operands = [(_planes(values[x]), _planes(values[dy]), c.correlation) for _, x, dy, c in self._contractions]
        contracted = weight_gradients(operands, pool=self._pool, threads=self._threads)
        for (name, x, *_), term in zip(self._contractions, contracted, strict=True):
            shaped = term if values[x].ndim == 4 else term[:, :, 0]
            found[name] = found[name] + shaped if name in found else shaped
        return {name: values[name] for name in self.outputs}, {name: found[name] for name in self.wrt}


def _planes(x: NDArray[Any]) -> NDArray[Any]:
    """A convolution over one axis as one over two."""
    return x if x.ndim == 4 else np.expand_dims(x, 2)
