"""onnxruntime sessions. Only this module imports onnxruntime.

A `Session` runs an onnx-ir model on the CPU with any set of its tensors as outputs. A session takes 20-100 ms to
create, so callers create one and feed it whatever changes.
"""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

import qmath
from qgraph.errors import ModelError, UsageError
from qgraph.running.inner import brought_out
from qgraph.running.threads import limit
from qgraph.running.unused import remove_unused
from qgraph.running.versions import needed_ir_version

Feeds = Mapping[str, NDArray[Any]]
T = TypeVar("T")
R = TypeVar("R")

KNOWN_OPSET = 23  # loaded by every supported onnxruntime
PROTOBUF_LIMIT = 1_800_000_000  # bytes of weights that one file holds (protobuf stops at 2 GiB)
_WEIGHT_FUSIONS = [
    "ConvAddFusion",
    "ConvMulFusion",
    "ConvBNFusion",
    "MatMul_BatchNormalization_Fusion",
    "MatMulScaleFusion",
]
_QUIET = 4  # onnxruntime's log level "fatal": errors come as exceptions

version: str = ort.__version__
REPAIR = (
    "pip uninstall onnxruntime-training onnxruntime, then pip install onnxruntime; to train through it, make an "
    "environment of its own, as docs/methods/zeroq.md says"
)


@cache
def check_installed() -> None:
    """Raise `UsageError` where onnxruntime and onnxruntime-training are installed over each other.

    Both wheels fill the folder `onnxruntime`, so the one that came last is half replaced, and models fail or compute
    something else.
    """
    from importlib import metadata

    found = {name for name in ("onnxruntime", "onnxruntime-training") if _is_installed(metadata, name)}
    if len(found) > 1:
        raise UsageError(
            f"onnxruntime and onnxruntime-training are installed in one environment, where each overwrites the other "
            f"(version {version} answers): {REPAIR}"
        )


def _is_installed(metadata: Any, name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


@cache
def latest_opset() -> int:
    """The newest opset that the installed onnxruntime loads, read from its refusal of an impossibly new one."""
    graph = onnx.helper.make_graph([], "ask", [], [])
    ask = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 2**20)], ir_version=8)
    options = _options(threads=1)
    try:
        ort.InferenceSession(ask.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as refusal:
        said = re.search(r"till opset (\d+)", str(refusal))
        return max(int(said[1]), KNOWN_OPSET) if said else KNOWN_OPSET
    return KNOWN_OPSET


@cache
def latest_quantized_opset() -> int:
    """The newest opset at which the installed onnxruntime has kernels for QuantizeLinear and DequantizeLinear."""
    text = "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    for opset in range(latest_opset(), KNOWN_OPSET, -1):
        head = f'<ir_version: 8, opset_import: ["": {opset}]> ask (float[1] x, float s, uint8 z) => (float[1] y)'
        try:
            Session(onnx.parser.parse_model(f"{head} {text}").SerializeToString())
        except ModelError:
            continue
        return opset
    return KNOWN_OPSET


class Session:
    """A model loaded in onnxruntime on the CPU.

    Args:
        model: the model, its file or the content of such a file; it is not changed.
        outputs: names of the tensors to return, inner ones included; by default the graph's outputs. Those of a branch
            that was not taken are empty; those in the body of a Loop or Scan are lists, with an array for each step.
        threads: intra-op threads; by default those of the job, or all cores.
        optimize: whether onnxruntime may rewrite the graph.
        fuse_integers: whether it may fuse quantizers and the operators between them into integer kernels.
        optimized_path: where onnxruntime writes the graph that it actually runs.
        profile_path: how the file begins, in which onnxruntime keeps the time of every node until `end_profile`.

    Raises:
        ModelError: When onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: ir.Model | str | Path | bytes,
        *,
        outputs: Sequence[str] | None = None,
        threads: int | None = None,
        optimize: bool = True,
        fuse_integers: bool = True,
        optimized_path: str | Path | None = None,
        profile_path: str | Path | None = None,
    ) -> None:
        options = _options(threads=threads or limit())
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if not fuse_integers:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
        if profile_path is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile_path)
        self._session = _create(_with_outputs(model, outputs), options)
        self.output_names = [o.name for o in self._session.get_outputs()]
        self.output_types = [o.type for o in self._session.get_outputs()]
        """As onnxruntime writes them, such as `tensor(float)`."""
        self.input_names = [i.name for i in self._session.get_inputs()]

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """All outputs by name."""
        return dict(zip(self.output_names, self.run_list(feeds), strict=True))

    def run_list(self, feeds: Feeds) -> list[NDArray[Any]]:
        """All outputs in the order of `output_names`; feeds that are not inputs of the session are ignored."""
        read = {name: array for name, array in feeds.items() if name in self.input_names}
        try:
            result: list[NDArray[Any]] = self._session.run(None, read)
        except Exception as error:
            raise ModelError(f"onnxruntime cannot run the model: {_reason(error)}") from error
        return result

    def repeated(self, feeds: Feeds) -> Callable[[], None]:
        """What runs the model on these feeds again and again, for timing: no array is passed in or out."""
        binding = self._session.io_binding()
        for name in self.input_names:
            binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
        for name, value in zip(self.output_names, self.run_list(feeds), strict=True):
            if isinstance(value, np.ndarray) and value.dtype.kind not in "OU":
                binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(value))
            else:
                binding.bind_output(name, "cpu")
        return lambda: self._session.run_with_iobinding(binding)

    def end_profile(self) -> Path:
        """The file that holds the profile, with all runs so far."""
        return Path(self._session.end_profiling())


def optimised(model: ir.Model) -> ir.Model:
    """The graph that onnxruntime makes of `model` on this machine, which may contain operators of its own.

    Constants are rearranged but not computed with: quantizers stay, and nothing is merged into the weights of layers.
    """
    options = _options(threads=1)
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                _serialize(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=_WEIGHT_FUSIONS
            )
        except Exception as error:
            raise ModelError(f"onnxruntime cannot load the model: {_reason(error)}") from error
        return ir.from_proto(onnx.load(path))


def evaluate_constants(model: ir.Model, values: Sequence[ir.Value]) -> list[NDArray[Any] | None]:
    """The values of tensors that depend on initializers alone; None for all if onnxruntime cannot compute one."""
    try:
        session = Session(model, outputs=[str(v.name) for v in values])
        computed = session.run({})
    except (ModelError, RuntimeError):
        return [None] * len(values)
    return [computed[str(v.name)] for v in values]


def in_parallel(job: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """Yield job(item) for every item, in order, with few items in memory at a time.

    It uses `workers` threads, by default as many as the job has, or as there are cores. They may share a session of one
    thread: one sample per core is faster than all cores on one sample.
    """
    count = workers or qmath.get_threads()
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(job, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _with_outputs(model: ir.Model | str | Path | bytes, outputs: Sequence[str] | None) -> ir.Model | str | Path | bytes:
    if outputs is None:
        return model
    if isinstance(model, bytes):
        part = ir.from_proto(onnx.ModelProto.FromString(model))
    else:
        part = model.clone() if isinstance(model, ir.Model) else ir.load(model)
    values = ir.convenience.create_value_mapping(part.graph)
    asked = brought_out(part.graph, [values[name] for name in dict.fromkeys(outputs)])
    part.graph.outputs.clear()
    part.graph.outputs.extend(asked)
    remove_unused(part)
    used = [v for v in part.graph.inputs if v.uses() or v.is_graph_output()]
    part.graph.inputs.clear()
    part.graph.inputs.extend(used)
    return part


def _options(*, threads: int | None) -> ort.SessionOptions:
    check_installed()
    options = ort.SessionOptions()
    options.log_severity_level = _QUIET
    if threads:
        options.intra_op_num_threads = threads
    return options


def _create(model: ir.Model | str | Path | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    providers = ["CPUExecutionProvider"]
    try:
        if isinstance(model, bytes):
            return ort.InferenceSession(model, options, providers=providers)
        if not isinstance(model, ir.Model):
            return ort.InferenceSession(str(model), options, providers=providers)
        if fits_one_file(model):
            return ort.InferenceSession(_serialize(model), options, providers=providers)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            kept = model.clone()
            kept.ir_version = needed_ir_version(model)
            ir.save(kept, path, external_data="model.data")
            return ort.InferenceSession(str(path), options, providers=providers)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {_reason(error)}") from error


def fits_one_file(model: ir.Model) -> bool:
    """Whether all weights are in memory and fit in one protobuf.

    Others stay mapped from their file, or are computed while they are written, and need a data file of their own.
    """
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    at_hand = not any(isinstance(tensor, ir.ExternalTensor | ir.LazyTensor) for tensor in weights)
    return at_hand and sum(tensor.nbytes for tensor in weights) <= PROTOBUF_LIMIT


def without_weights(model: ir.Model) -> ir.Model:
    """The graph with every constant that is not in memory as an input, so that it loads without its weights."""
    graph = model.clone()
    for name, value in list(graph.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (isinstance(tensor, ir.ExternalTensor | ir.LazyTensor)):
            value.shape, value.dtype, value.const_value = ir.Shape(tensor.shape.numpy()), tensor.dtype, None
            del graph.graph.initializers[name]
            graph.graph.inputs.append(value)
    return graph


def _serialize(model: ir.Model) -> bytes:
    proto = ir.to_proto(model)
    proto.ir_version = needed_ir_version(model)
    data: bytes = proto.SerializeToString()
    return data


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
