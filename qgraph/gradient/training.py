"""The backward graph of onnxruntime-training's GradientGraphBuilder.

The package `onnxruntime-training` (last release 1.19.2, Linux) takes the place of `onnxruntime`, so it needs an
environment of its own. The models that it returns contain operators of its own domain and run only there. It has no
gradient for BatchNormalization in inference form, which is rewritten first, and loads opsets up to 21.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import onnx
import onnx_ir as ir

from qgraph.gradient.batch_norm import batch_norm_as_mul_add
from qgraph.gradient.errors import GradientError
from qgraph.running.wording import command

_PORTABLE = "builder='portable'"

MAX_IR_VERSION = 10


@lru_cache(maxsize=1)
def _builder() -> Any:
    """The GradientGraphBuilder class, or None in a build of onnxruntime without training."""
    return getattr(import_module("onnxruntime.capi._pybind_state"), "GradientGraphBuilder", None)


def is_available() -> bool:
    """Whether the installed onnxruntime is a build with training."""
    return _builder() is not None


def with_gradients(net: ir.Model, loss: ir.Value, wrt: Sequence[ir.Value]) -> ir.Model:
    """`net` with the gradients of `loss` with respect to `wrt` as additional outputs `NAME_grad`."""
    builder = _builder()
    if builder is None:
        raise GradientError(
            "the gradient builder 'training' needs onnxruntime-training, which is not installed here: "
            "pip install onnxruntime-training==1.19.2 in an environment of its own (docs/methods/zeroq.md says how), "
            f"or choose {command('--gradients portable', _PORTABLE)}"
        )
    for value in wrt:
        if value.producer() is not None:
            raise GradientError(
                f"the gradient builder 'training' differentiates for inputs and initializers, but '{value.name}' "
                f"is neither: choose builder='portable'"
            )
    batch_norm_as_mul_add(net)
    names = [str(v.name) for v in wrt]
    outputs = [str(v.name) for v in net.graph.outputs]
    if loss not in net.graph.outputs:
        net.graph.outputs.append(loss)
    proto = ir.to_proto(net)
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    try:
        built = builder(proto.SerializeToString(), {str(loss.name)}, set(names), str(loss.name))
        built.build()
    except Exception as error:
        raise GradientError(f"onnxruntime-training cannot differentiate the model: {error}") from error
    result = ir.from_proto(onnx.load_model_from_string(built.get_model()))
    values = ir.convenience.create_value_mapping(result.graph)
    result.graph.outputs[:] = [values[name] for name in (*outputs, *(f"{n}_grad" for n in names))]
    return result
