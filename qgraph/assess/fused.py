"""Which layers of a quantized file onnxruntime runs on integers, and why the others stay float."""

from __future__ import annotations

import platform
import re
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from qgraph.graph.layers import LAYER_OPS
from qgraph.graph.tensors import fused_output, root
from qgraph.graph.walk import descendants, paths
from qgraph.onnxfile.model import Model
from qgraph.running.cpu import has_fast_integers
from qgraph.running.sessions import Session
from qgraph.running.threads import keeps_threads
from qgraph.running.wording import option

INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
    | {"MatMulNBits"}
)
_SUFFIXES = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant|/MatMulAddFusion|/GemmTransposeFusion)+$")


_SCALING_OPS = frozenset({"Mul", "Sub", "Add", "Reshape", "Transpose"})  # between codes and a float weight
_FLOAT_WEIGHT = "its weight is floating point"
_UNPACKED = "its weight is stored in codes and becomes floating point when the file is loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLayer:
    """A layer of the file, and the kernel that runs it."""

    name: str
    op: str
    kernel: str
    integer: bool
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedGraph:
    """Every layer, warnings about speed and accuracy, and how many operators of each type onnxruntime runs."""

    layers: tuple[FusedLayer, ...]
    warnings: tuple[str, ...]
    operators: dict[str, int] = field(default_factory=dict)


@keeps_threads
def inspect_fused(model: Model, *, threads: int | None = None) -> FusedGraph:
    """Load the file in onnxruntime, read its optimized graph back, and match it with the layers of the file."""
    model = with_names(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        Session(model.ir_model, threads=threads, optimized_path=path)
        return read_fused(model, path)


def with_names(model: Model) -> Model:
    """The model, with a name for every node: kernels are found by it. Copied if it has nodes without one."""
    if all(node.name for node in _nodes(model.graph)):
        return model
    named = model.ir_model.clone()
    for index, node in enumerate(_nodes(named.graph)):
        node.name = node.name or f"{node.op_type}_{index}"
    return replace(model, ir_model=named)


def read_fused(model: Model, optimised: Path) -> FusedGraph:
    """The layers of `model`, matched with the optimized graph that onnxruntime wrote when it loaded the model."""
    loaded = list(_loaded(onnx.load(optimised, load_external_data=False).graph))
    kernels, operators = _kernels(loaded), dict(Counter(node.op_type for node in loaded))
    layers, names_of = [], paths(model.graph)
    varying = {
        **descendants(v for v in model.graph.inputs if v.const_value is None),
        **dict.fromkeys(_inner(model.graph)),
    }
    for node in _nodes(model.graph):
        if node.domain != "" or not (node.op_type in LAYER_OPS or is_dynamic_product(node, varying)):
            continue
        if _is_part(node):
            continue
        results = scaled(node.outputs[0]) if node.op_type == "MatMulInteger" else [node.outputs[0]]
        names = (str(node.name), *(str(value.name) for value in results))
        kernel = next((kernels[name] for name in names if name in kernels), "(folded away)")
        integer = kernel in INTEGER_KERNELS
        why = "" if integer else _why_float(node, varying)
        op = "MatMul" if node.op_type == "MatMulInteger" else node.op_type
        layers.append(FusedLayer(name=names_of[node], op=op, kernel=kernel, integer=integer, why=why))
    return FusedGraph(layers=tuple(layers), warnings=tuple(_warnings(model, layers)), operators=operators)


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of the main graph, and behind them those of bodies."""
    return [*graph, *_inner(graph)]


def _inner(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of bodies, all of which depend on what is fed: it decides whether and how often they run."""
    return [node for body in graph.subgraphs() for node in body]


def _loaded(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _loaded(attribute.g)


def is_dynamic_product(node: ir.Node, varying: Container[ir.Node]) -> bool:
    """Whether the node multiplies what is fed with integers, and is not what unpacks a weight."""
    return node.op_type == "MatMulInteger" and node.domain == "" and node in varying


def _is_part(node: ir.Node) -> bool:
    """Whether the node multiplies the few channels that a dynamic product leaves out, and adds them to its result."""
    readers = [use.node for use in node.outputs[0].uses()]
    if node.op_type != "MatMul" or node.name or len(readers) != 1 or readers[0].op_type != "Add":
        return False
    other = next((v for v in readers[0].inputs if v is not node.outputs[0]), None)
    product = None if other is None else other.producer()
    for op in ("Mul", "Cast"):
        first = product.inputs[0] if product is not None and product.op_type == op else None
        product = None if first is None else first.producer()
    return product is not None and product.op_type == "MatMulInteger"


def scaled(value: ir.Value) -> Iterator[ir.Value]:
    """The result of a node, and of those that onnxruntime merges into an integer product: Cast, Mul and Add."""
    yield value
    for op in ("Cast", "Mul", "Add"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != op:
            return
        value = uses[0].node.outputs[0]
        yield value


def _kernels(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """The operators that onnxruntime runs, by node name and by output name."""
    kernels: dict[str, str] = {}
    for node in nodes:
        kernels.setdefault(_SUFFIXES.sub("", node.name), node.op_type)
        for output in node.output:
            kernels.setdefault(output, node.op_type)
    return kernels


def _why_float(node: ir.Node, varying: Container[ir.Node]) -> str:
    """The first rule of onnxruntime's fusion that the layer breaks."""
    data, weight = node.inputs[0], node.inputs[1]
    if node.op_type == "MatMulInteger":
        return "it is no product of int8 with DynamicQuantizeLinear, Cast and Mul around it"
    if node.op_type == "ConvTranspose":
        return "onnxruntime has no integer ConvTranspose"
    if dequantizer(weight) is None:
        if weight is not None and not _is_constant(weight, varying):
            return "its weight is not behind DequantizeLinear"
        return _FLOAT_WEIGHT if weight_codes(weight) is None else _UNPACKED
    if dequantizer(data) is None:
        return "its input is not quantized"
    if node.op_type == "Conv":
        result = fused_output(node.outputs[0])
        if result.is_graph_output():
            return "its result is a graph output in floating point"
        readers = [use.node.op_type for use in result.uses()]
        if readers != ["QuantizeLinear"]:
            return f"its result goes to {', '.join(sorted(set(readers)))} before it is quantized"
        if result is not node.outputs[0]:
            return f"the {result.producer().op_type} behind it is not made redundant by its grid"  # type: ignore[union-attr]
    return "onnxruntime's rules decline it (zero points, types or a weight grid that its kernel does not take)"


def weight_codes(value: ir.Value | None) -> ir.Value | None:
    """The integers that a weight is made from: the input of its DequantizeLinear or Cast to float."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("DequantizeLinear", "Cast"):
            return node.inputs[0]
        value = node.inputs[0] if node.op_type in _SCALING_OPS else None
    return None


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from."""
    node = None if value is None else root(value).producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _is_constant(value: ir.Value, varying: Container[ir.Node]) -> bool:
    """Whether a value is computed from constants alone; `varying` are the nodes that depend on inputs."""
    producer = value.producer()
    return value.const_value is not None if producer is None else producer not in varying


def _warnings(model: Model, layers: list[FusedLayer]) -> list[str]:
    quantized = any(n.op_type == "QuantizeLinear" for n in _nodes(model.graph))
    meant = [layer for layer in layers if layer.why not in (_FLOAT_WEIGHT, _UNPACKED)]
    integer = sum(layer.integer for layer in meant)
    found = []
    if quantized and integer < len(meant) / 2:
        found.append(
            f"only {integer} of {len(meant)} quantized layers run on integers: the rest dequantize at run time, and "
            f"the model is likely slower than float; see the reasons above"
        )
    if quantized and has_fast_integers() is False:
        found.append(
            f"this CPU ({platform.machine()}) has no VNNI or dot-product instructions: 8-bit products gain less here, "
            f"and those of other tools' files may saturate; qgraph's do not, without {option('target_cpu', 'vnni')}"
        )
    return found
