"""A training step: a session that computes the loss and all gradients, and is never rebuilt.

Its inputs are samples, targets and parameters. A batch is split into shards that run in parallel, one thread each;
gradients are added in the order of the shards, so that the number of threads changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.gradient.build import gradient_name
from qgraph.gradient.contraction import weight_gradients
from qgraph.gradient.deferred import Deferred
from qgraph.gradient.layout import blocked
from qgraph.running.sessions import Session

Arrays = Mapping[str, NDArray[Any]]
OPSET = 16  # the least that the gradients of trained and distilled networks are made in
LOSS = "loss"  # the name of the tensor that is minimised


class TrainingStep:
    """Computes the loss and gradients of a batch; use it as a context manager."""

    def __init__(self, graph: Deferred, *, teacher: Session | None = None, threads: int) -> None:
        trained = [str(v.name) for v in graph.model.graph.inputs if str(v.name).startswith(("weight:", "bias:"))]
        self._blocked = blocked(graph.model, trained)
        model = graph.model if self._blocked is None else self._blocked.model
        self._session = Session(model, threads=1, fuse_integers=False, optimize=self._blocked is None)
        self._wrt = [str(v.name) for v in graph.wrt]
        self._statistics = [str(v.name) for v in graph.outputs if v.name != LOSS]
        self._contractions = [(str(c.weight.name), str(c.x.name), str(c.dy.name), c) for c in graph.contractions]
        self._teacher = teacher
        self._inputs = set(self._session.input_names)
        self._pool = ThreadPoolExecutor(threads)

    def __enter__(self) -> TrainingStep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, parameters: Arrays, shards: Sequence[Arrays]) -> tuple[float, dict[str, NDArray[np.float32]]]:
        """The loss and the gradients by input name, summed over all samples; statistics are averaged."""
        if self._blocked is not None:
            parameters = {**parameters, **self._blocked.feeds(parameters)}
        jobs = [self._pool.submit(self._run, parameters, shard) for shard in shards]
        loss = 0.0
        total: dict[str, NDArray[np.float32]] = {}
        for job in jobs:
            part, found = job.result()
            loss += part
            total = {name: total[name] + g for name, g in found.items()} if total else found
        return loss, total | {name: total[name] / np.float32(len(shards)) for name in self._statistics}

    def _run(self, parameters: Arrays, shard: Arrays) -> tuple[float, dict[str, NDArray[np.float32]]]:
        feeds = {**parameters, **shard}
        if self._teacher is not None:
            samples = {name: shard[name] for name in self._teacher.input_names}
            feeds |= {f"float:{name}": x for name, x in self._teacher.run(samples).items()}
        values = {**feeds, **self._session.run({name: x for name, x in feeds.items() if name in self._inputs})}
        found = {name: values[key] for name in self._wrt if (key := gradient_name(name)) in values}
        found |= {name: values[name] for name in self._statistics}
        operands = [(values[x], values[dy], c.correlation) for _, x, dy, c in self._contractions]
        for (name, x, *_), term in zip(self._contractions, weight_gradients(operands), strict=True):
            term = term.reshape(term.shape[:2] + term.shape[3:]) if values[x].ndim == 3 else term
            found[name] = found[name] + term if name in found else term
        return float(values[LOSS]), found
