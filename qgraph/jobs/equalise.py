"""Make an equivalent float model that loses less at few bits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Unpack

from qgraph.assess.verify import verify
from qgraph.errors import UsageError
from qgraph.jobs.given import open_given
from qgraph.methods.equalise.equalise import Equalisation, equalised
from qgraph.observe.statistics import observe
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.running.progress import SILENT, Progress
from qgraph.running.threads import keeps_threads
from qgraph.running.wording import option
from qgraph.samples.dataset import DataLike, Reading
from qgraph.samples.fallback import falling_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Equalised(Model):
    """The equivalent model, and what was changed of each group of tensors."""

    groups: tuple[Equalisation, ...]


@keeps_threads
def equalise(
    model: ModelLike,
    data: DataLike,
    *,
    weights: int = 4,
    activations: int = 4,
    opset: int | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Equalised:
    """Scale and centre channels between layers, so that quantization to these bits adds less noise.

    The result is a float model that computes the same, up to the rounding of floats; quantize it like any other. Plans
    made for it name it, not the model it was made from.

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model.
        data: samples without labels, as for `quantize`.
        weights, activations: the bits that the model will get.
        opset, preprocessing, limit, batch, shapes, batch_axes, threads: as in `quantize`.

    Raises:
        QGraphError: something is wrong with the model, the data or the options.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> equal = qgraph.equalise(network, samples, limit=32)
        >>> len(equal.groups) > 0
        True
    """
    for name, bits in (("weights", weights), ("activations", activations)):
        if not 2 <= bits <= 8:
            raise UsageError(f"--{name} must be a number from 2 to 8, not {bits}")
    given = open_given(model, data, opset=opset, **reading)
    if given.samples is None:
        raise UsageError(f"equalise reads samples: pass {option('data')}")
    samples, observed = falling_back(
        given.net, given.samples, lambda some: observe(given.net, some, threads=threads, progress=progress)
    )
    net, groups = equalised(given.net, observed, weight_bits=weights, bits=activations)
    verify(net.ir_model, given.net, samples, threads=threads)
    fields = {field.name: getattr(net, field.name) for field in dataclasses.fields(Model)}
    return Equalised(**fields, groups=groups)
