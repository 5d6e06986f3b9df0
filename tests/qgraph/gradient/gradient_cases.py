"""One case or more for every gradient rule: a node, written as ONNX text, and the shapes of its float inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Case:
    """`body` computes y from the inputs in `shapes`; `constants` are extra initializers in ONNX text.

    `dynamic` names the inputs whose sizes are left unknown to the builder in the second run of the case.
    """

    op: str
    body: str
    shapes: dict[str, tuple[int, ...]]
    constants: str = ""
    positive: bool = False
    dynamic: tuple[str, ...] = ("x",)
    opset: int = 20
    wrt: tuple[str, ...] = field(default=())

    @property
    def id(self) -> str:
        return " ".join(self.body.split())[:90]

    def inputs(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1234)
        draw = {name: np.asarray(rng.normal(size=shape)) for name, shape in self.shapes.items()}
        return {name: np.asarray(np.abs(v) + 0.3) for name, v in draw.items()} if self.positive else draw


def _unary(
    name: str, attributes: str = "", *, shape: tuple[int, ...] = (2, 3, 4), opset: int = 20, positive: bool = False
) -> Case:
    return Case(name, f"y = {name}{attributes}(x)", {"x": shape}, opset=opset, positive=positive)


def _pair(name: str, a: tuple[int, ...], b: tuple[int, ...], *, positive: bool = False) -> Case:
    return Case(name, f"y = {name}(a, b)", {"a": a, "b": b}, dynamic=("a", "b"), positive=positive)


ELEMENTWISE = [
    _pair("Add", (2, 3, 4), (3, 1)),
    _pair("Add", (2, 3), (2, 3)),
    _pair("Sub", (4,), (2, 3, 1)),
    _pair("Mul", (1, 3), (5, 1)),
    _pair("Mul", (), (2, 2)),
    _pair("Div", (2, 3, 4), (1, 3, 1), positive=True),
    Case("Sum", "y = Sum(a, b, c)", {"a": (2, 3), "b": (3,), "c": (2, 1)}, dynamic=("a", "b", "c")),
    Case("Mean", "y = Mean(a, b, c)", {"a": (2, 3), "b": (3,), "c": (2, 1)}, dynamic=("a", "b", "c")),
    _pair("Pow", (2, 3), (3,), positive=True),
    Case("Pow", "y = Pow(x, p)", {"x": (2, 3)}, "double p = {2.0}"),
    Case("Pow", "y = Pow(x, p)", {"x": (2, 3)}, "int64 p = {3}"),
    Case("Pow", "y = Pow(x, p)", {"x": (2, 3)}, "double p = {-0.5}", positive=True),
    *(_unary(name) for name in ("Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Identity", "Dropout")),
    *(_unary(name, positive=True) for name in ("Reciprocal", "Sqrt", "Log")),
    _pair("Max", (2, 3, 4), (3, 1)),
    _pair("Min", (2, 3, 4), (3, 1)),
    Case("Max", "y = Max(a, b, c)", {"a": (2, 3), "b": (3,), "c": (2, 1)}, dynamic=("a",)),
    Case("Clip", "y = Clip(x, lo, hi)", {"x": (4, 5), "lo": (), "hi": ()}),
    Case("Clip", "y = Clip(x, lo, hi)", {"x": (4, 5)}, "double lo = {-0.5}, double hi = {0.7}"),
    Case("Clip", "h = Constant<value_float = 0.6>() hi = CastLike(h, x) y = Clip(x, , hi)", {"x": (4, 5)}),
    Case("Where", "c = Greater(a, b) y = Where(c, a, b)", {"a": (2, 3), "b": (3,)}, dynamic=("a", "b")),
    Case("Cast", "z = Cast<to = 11>(x) h = Mul(z, z) y = CastLike(h, x)", {"x": (2, 3)}),
    Case("CastLike", "y = CastLike(x, x)", {"x": (2, 3)}),
    *(Case(name, f"s = {name}(x) y = Mul(s, x)", {"x": (2, 3)}) for name in ("Floor", "Ceil", "Sign")),
    *(_unary(name) for name in ("Relu", "Elu", "Celu", "Selu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Mish")),
    *(_unary(name) for name in ("LeakyRelu", "HardSigmoid", "HardSwish", "Gelu")),
    _unary("LeakyRelu", "<alpha = 0.3>"),
    _unary("Elu", "<alpha = 0.7>"),
    _unary("Celu", "<alpha = 1.7>"),
    _unary("HardSigmoid", "<alpha = 0.4, beta = 0.3>"),
    _unary("Gelu", '<approximate = "tanh">'),
    Case("PRelu", "y = PRelu(x, s)", {"x": (2, 3, 4), "s": (3, 1)}),
    _unary("Softmax"),
    _unary("Softmax", "<axis = 1>"),
    _unary("LogSoftmax", "<axis = 0>"),
]

CONVOLUTION = [
    Case("Conv", "y = Conv(x, w, b)", {"x": (2, 3, 6, 5), "w": (4, 3, 3, 3), "b": (4,)}),
    Case("Conv", "y = Conv<pads = [1, 1, 1, 1], group = 2>(x, w)", {"x": (2, 4, 5, 6), "w": (6, 2, 3, 3)}),
    Case("Conv", "y = Conv<pads = [1, 0, 2, 1], strides = [2, 3]>(x, w)", {"x": (2, 3, 9, 8), "w": (4, 3, 3, 2)}),
    Case("Conv", "y = Conv<dilations = [2, 1], pads = [2, 1, 2, 0]>(x, w)", {"x": (1, 2, 7, 6), "w": (3, 2, 3, 3)}),
    Case("Conv", "y = Conv<strides = [2, 2], dilations = [2, 3]>(x, w)", {"x": (1, 2, 10, 12), "w": (3, 2, 3, 3)}),
    Case(
        "Conv",
        "y = Conv<group = 4, strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)",
        {"x": (2, 4, 8, 7), "w": (4, 1, 3, 3)},
    ),
    Case(
        "Conv", "y = Conv<group = 4, pads = [1, 1, 1, 1]>(x, w, b)", {"x": (2, 4, 5, 5), "w": (8, 1, 3, 3), "b": (8,)}
    ),
    Case("Conv", "y = Conv<pads = [4, 0, 4, 0]>(x, w)", {"x": (1, 2, 3, 3), "w": (2, 2, 3, 1)}),
    Case(
        "Conv",
        'y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)',
        {"x": (1, 2, 7, 6), "w": (3, 2, 3, 4)},
        dynamic=(),
    ),
    Case("Conv", 'y = Conv<auto_pad = "SAME_LOWER">(x, w)', {"x": (1, 2, 5, 6), "w": (3, 2, 2, 4)}),
    Case("Conv", 'y = Conv<auto_pad = "VALID", strides = [3, 1]>(x, w)', {"x": (1, 2, 7, 6), "w": (3, 2, 2, 1)}),
    Case("Conv", "y = Conv<strides = [2], pads = [1, 2]>(x, w, b)", {"x": (2, 3, 8), "w": (4, 3, 3), "b": (4,)}),
    Case("Conv", "y = Conv<group = 3, dilations = [2]>(x, w)", {"x": (2, 3, 8), "w": (3, 1, 3)}),
    Case(
        "Conv",
        "y = Conv<strides = [1, 2, 1], pads = [1, 0, 1, 0, 1, 1]>(x, w, b)",
        {"x": (1, 2, 4, 5, 4), "w": (3, 2, 2, 3, 2), "b": (3,)},
    ),
    Case("Conv", "y = Conv(x, w)", {"x": (2, 4, 3, 3), "w": (6, 4, 1, 1)}),
    Case("Conv", "y = Conv<strides = [2, 2]>(x, w)", {"x": (2, 4, 4, 5), "w": (6, 4, 1, 1)}),
    Case("ConvTranspose", "y = ConvTranspose(x, w, b)", {"x": (2, 3, 4, 3), "w": (3, 2, 3, 2), "b": (2,)}),
    Case(
        "ConvTranspose",
        "y = ConvTranspose<strides = [2, 3], pads = [1, 0, 0, 2], output_padding = [1, 2]>(x, w)",
        {"x": (1, 2, 3, 4), "w": (2, 3, 3, 3)},
    ),
    Case(
        "ConvTranspose",
        "y = ConvTranspose<group = 2, dilations = [2, 1], strides = [1, 2]>(x, w, b)",
        {"x": (2, 4, 3, 4), "w": (4, 3, 2, 3), "b": (6,)},
    ),
    Case(
        "ConvTranspose",
        'y = ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)',
        {"x": (1, 2, 3, 4), "w": (2, 2, 3, 3)},
        dynamic=(),
    ),
    Case("ConvTranspose", "y = ConvTranspose<strides = [2], group = 3>(x, w)", {"x": (2, 3, 5), "w": (3, 1, 4)}),
    Case(
        "ConvTranspose",
        "y = ConvTranspose<strides = [2, 1, 2]>(x, w)",
        {"x": (1, 2, 3, 2, 2), "w": (2, 2, 2, 2, 3)},
    ),
]

MATRIX = [
    Case("Gemm", "y = Gemm(a, b, c)", {"a": (3, 4), "b": (4, 5), "c": (5,)}, dynamic=("a",)),
    Case("Gemm", "y = Gemm<alpha = 0.5, beta = 2.0, transA = 1>(a, b, c)", {"a": (4, 3), "b": (4, 5), "c": (3, 1)}),
    Case("Gemm", "y = Gemm<alpha = 0.5, transB = 1>(a, b)", {"a": (3, 4), "b": (5, 4)}),
    Case("Gemm", "y = Gemm<transA = 1, transB = 1>(a, b, c)", {"a": (4, 3), "b": (5, 4), "c": ()}),
    Case("MatMul", "y = MatMul(a, b)", {"a": (3, 4), "b": (4, 5)}, dynamic=("a",)),
    Case("MatMul", "y = MatMul(a, b)", {"a": (2, 3, 4), "b": (4, 5)}, dynamic=("a",)),
    Case("MatMul", "y = MatMul(a, b)", {"a": (2, 1, 3, 4), "b": (3, 4, 2)}, dynamic=("a", "b")),
    Case("MatMul", "y = MatMul(a, b)", {"a": (4,), "b": (2, 4, 5)}),
    Case("MatMul", "y = MatMul(a, b)", {"a": (2, 3, 4), "b": (4,)}),
    Case("MatMul", "y = MatMul(a, b)", {"a": (4,), "b": (4,)}),
]

NORMALIZATION = [
    Case(
        "BatchNormalization",
        "y = BatchNormalization<epsilon = 0.01>(x, s, b, m, v)",
        {"x": (2, 3, 4, 2), "s": (3,), "b": (3,), "m": (3,), "v": (3,)},
        positive=True,
    ),
    Case("LayerNormalization", "y = LayerNormalization(x, s, b)", {"x": (2, 3, 4), "s": (4,), "b": (4,)}),
    Case("LayerNormalization", "y = LayerNormalization<axis = 1, epsilon = 0.1>(x, s)", {"x": (2, 3, 4), "s": (3, 4)}),
    Case("InstanceNormalization", "y = InstanceNormalization(x, s, b)", {"x": (2, 3, 4, 5), "s": (3,), "b": (3,)}),
]

_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
_LOGARITHMIC = ("ReduceLogSum", "ReduceLogSumExp")

REDUCTION = [
    *(
        Case(name, f"y = {name}<keepdims = 0>(x, axes)", {"x": (3, 4, 2)}, "int64[2] axes = {0, -1}", positive=True)
        for name in (*_REDUCTIONS, *_LOGARITHMIC)
    ),
    *(Case(name, f"y = {name}(x)", {"x": (3, 4)}, positive=True) for name in (*_REDUCTIONS, *_LOGARITHMIC)),
    Case("ReduceMean", "y = ReduceMean<axes = [1], keepdims = 0>(x)", {"x": (3, 4, 2)}, opset=17),
    Case("ReduceMax", "y = ReduceMax<axes = [2]>(x)", {"x": (3, 4, 2)}, opset=17),
    Case("ReduceSum", "y = ReduceSum<noop_with_empty_axes = 1>(x, a)", {"x": (3, 4)}, "int64[0] a = {}"),
    Case("GlobalAveragePool", "y = GlobalAveragePool(x)", {"x": (2, 3, 4, 5)}),
    Case("GlobalMaxPool", "y = GlobalMaxPool(x)", {"x": (2, 3, 4, 5)}),
]

POOLING = [
    Case("AveragePool", "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)", {"x": (2, 3, 5, 6)}),
    Case("AveragePool", "y = AveragePool<kernel_shape = [4, 5]>(x)", {"x": (2, 3, 4, 5)}),
    Case("AveragePool", "y = AveragePool<kernel_shape = [3, 2], pads = [1, 1, 0, 1]>(x)", {"x": (1, 2, 5, 6)}),
    Case(
        "AveragePool",
        "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2], count_include_pad = 1>(x)",
        {"x": (1, 2, 6, 5)},
    ),
    Case(
        "AveragePool",
        "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)",
        {"x": (1, 2, 6, 8)},
    ),
    Case("AveragePool", "y = AveragePool<kernel_shape = [3], pads = [1, 0], strides = [2]>(x)", {"x": (2, 3, 8)}),
    Case("AveragePool", "y = AveragePool<kernel_shape = [2, 2, 2], dilations = [1, 2, 1]>(x)", {"x": (1, 2, 3, 4, 3)}),
    Case("MaxPool", "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)", {"x": (2, 3, 5, 6)}),
    Case(
        "MaxPool",
        "y = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 2]>(x)",
        {"x": (2, 3, 5, 6)},
    ),
    Case("MaxPool", "y = MaxPool<kernel_shape = [2, 3], dilations = [2, 1], ceil_mode = 1>(x)", {"x": (1, 2, 6, 6)}),
    Case("MaxPool", "y = MaxPool<kernel_shape = [3], strides = [2]>(x)", {"x": (2, 3, 8)}),
    Case("MaxPool", "y, i = MaxPool<kernel_shape = [2, 2], storage_order = 1>(x)", {"x": (2, 3, 5, 6)}),
    Case("MaxPool", "y = MaxPool<kernel_shape = [2, 2, 2]>(x)", {"x": (1, 2, 3, 4, 3)}),
]

SHAPE = [
    Case("Reshape", "y = Reshape(x, s)", {"x": (2, 3, 4)}, "int64[2] s = {-1, 6}"),
    Case("Flatten", "y = Flatten<axis = 2>(x)", {"x": (2, 3, 4)}),
    Case("Squeeze", "y = Squeeze(x, a)", {"x": (2, 1, 4)}, "int64[1] a = {1}"),
    Case("Unsqueeze", "y = Unsqueeze(x, a)", {"x": (2, 4)}, "int64[2] a = {0, 2}"),
    Case("Transpose", "y = Transpose<perm = [2, 0, 1]>(x)", {"x": (2, 3, 4)}),
    Case("Transpose", "y = Transpose(x)", {"x": (2, 3, 4)}),
    Case("Expand", "y = Expand(x, s)", {"x": (3, 1)}, "int64[3] s = {2, 1, 4}"),
    Case("Concat", "y = Concat<axis = -1>(a, b, a)", {"a": (2, 3), "b": (2, 2)}, dynamic=("a", "b")),
    Case("Split", "y, u, v = Split<axis = 1>(x, s)", {"x": (2, 6)}, "int64[3] s = {1, 2, 3}"),
    Case("Split", "u, v = Split<axis = 1, num_outputs = 2>(x) y = Mul(u, v)", {"x": (2, 6)}),
    Case("Tile", "y = Tile(x, r)", {"x": (2, 3)}, "int64[2] r = {2, 3}"),
    Case("Pad", "y = Pad(x, p)", {"x": (3, 4)}, "int64[4] p = {1, -1, 2, 0}"),
    Case("Pad", "y = Pad(x, p, v, a)", {"x": (3, 4), "v": ()}, "int64[2] p = {1, 2}, int64[1] a = {-1}"),
    Case("Pad", 'y = Pad<mode = "reflect">(x, p)', {"x": (3, 4)}, "int64[4] p = {1, 2, 2, 0}"),
    Case("Pad", 'y = Pad<mode = "edge">(x, p)', {"x": (3, 4)}, "int64[4] p = {1, 2, 2, 0}"),
    Case(
        "Pad",
        'y = Pad<mode = "edge">(x, p, f, a)',
        {"x": (3, 4)},
        "int64[2] p = {1, 2}, double f = {3}, int64[1] a = {-1}",
    ),
    Case(
        "Slice",
        "y = Slice(x, s, e, a, t)",
        {"x": (5, 7)},
        "int64[2] s = {0, 1}, int64[2] e = {99, 99}, int64[2] a = {0, 1}, int64[2] t = {2, 3}",
    ),
    Case("Slice", "y = Slice(x, s, e)", {"x": (5, 7)}, "int64[2] s = {1, -4}, int64[2] e = {3, -1}"),
    Case(
        "Slice",
        "y = Slice(x, s, e, a, t)",
        {"x": (5, 7)},
        "int64[1] s = {-1}, int64[1] e = {0}, int64[1] a = {1}, int64[1] t = {-2}",
    ),
    Case("DepthToSpace", "y = DepthToSpace<blocksize = 2>(x)", {"x": (2, 8, 2, 3)}),
    Case("DepthToSpace", 'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)', {"x": (2, 8, 2, 3)}),
    Case("SpaceToDepth", "y = SpaceToDepth<blocksize = 2>(x)", {"x": (2, 2, 4, 6)}),
    Case("Gather", "y = Gather<axis = 1>(x, i)", {"x": (3, 4, 2)}, "int64[2,2] i = {0, 3, -1, 0}"),
    Case("Gather", "y = Gather(x, i)", {"x": (3, 4)}, "int64 i = {2}"),
    Case("GatherElements", "y = GatherElements<axis = 1>(x, i)", {"x": (2, 4)}, "int64[2,3] i = {0, 3, 0, 1, 1, 1}"),
    Case("GatherND", "y = GatherND(x, i)", {"x": (2, 4, 3)}, "int64[3,2] i = {0, 3, 1, 1, 0, 3}"),
    Case("GatherND", "y = GatherND<batch_dims = 1>(x, i)", {"x": (2, 4, 3)}, "int64[2,1] i = {3, 1}"),
    Case("Resize", 'y = Resize<mode = "nearest">(x, , s)', {"x": (2, 3, 3, 4)}, "float[4] s = {1.0, 1.0, 2.0, 1.5}"),
    Case("Resize", 'y = Resize<mode = "linear">(x, , s)', {"x": (2, 3, 3, 4)}, "float[4] s = {1.0, 1.0, 2.0, 0.7}"),
    Case(
        "Resize",
        'y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, , , s)',
        {"x": (2, 3, 3, 4)},
        "int64[4] s = {2, 3, 5, 7}",
    ),
    Case(
        "Resize",
        'y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , s)',
        {"x": (2, 3, 3, 4)},
        "float[4] s = {1.0, 1.0, 3.0, 2.0}",
    ),
    Case("Resize", 'y = Resize<mode = "cubic">(x, , , s)', {"x": (1, 1, 5, 4)}, "int64[4] s = {1, 1, 7, 6}"),
]

CASES = [*ELEMENTWISE, *CONVOLUTION, *MATRIX, *NORMALIZATION, *REDUCTION, *POOLING, *SHAPE]
