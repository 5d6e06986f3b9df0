"""Reconstruction: its grid's gradients, what it gains, and that it can be interrupted and repeated."""

from __future__ import annotations

import dataclasses
from importlib.resources import files

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import qgraph
from qgraph.errors import UsageError
from qgraph.gradient import gradients
from qgraph.graph.blocks import Block
from qgraph.graph.sites import GraphView
from qgraph.jobs.given import open_given
from qgraph.lowering.simulate import simulate
from qgraph.methods.reconstruct.adaround import AdaRoundWeight
from qgraph.methods.reconstruct.config import ReconstructConfig
from qgraph.methods.reconstruct.crops import cropped, margin
from qgraph.methods.reconstruct.graph import block_part
from qgraph.methods.reconstruct.quantizer import DOMAIN, INPUTS, drop_quantize, expand
from qgraph.methods.reconstruct.variables import SoftWeight
from qgraph.methods.reconstruct.walk import reconstruct_blocks
from qgraph.plan.plan import WeightQuant
from qgraph.plan.saturation import never_saturates
from qgraph.running.job import Job
from qgraph.running.sessions import Session

RNG = np.random.default_rng(6)
DEMO = files("qgraph") / "demo_assets"
QUICK = ReconstructConfig(steps=24, batch=16, shard=8, samples=64)


@pytest.fixture(scope="module")
def start():
    data = str(DEMO / "digits_calibration.npz")
    bits = {"weights": 2, "activations": 4, "rounding": "nearest"}
    plan = qgraph.quantize(DEMO / "digits.onnx", data, limit=64, measure=False, **bits).plan
    given = open_given(DEMO / "digits.onnx", data, limit=64)
    return plan, GraphView(given.net), given.samples


def test_it_brings_the_network_nearer_to_the_float_one(start):
    plan, view, samples = start
    config = dataclasses.replace(QUICK, steps=100)
    learned = reconstruct_blocks(plan, view, samples, config=config, job=Job(threads=1))
    feeds = next(iter(samples.batches(64))).feeds
    (want,) = Session(view.model.ir_model).run_list(feeds)
    have = [Session(simulate(view.model, p)).run_list(feeds)[0] for p in (plan, learned)]
    before, after = (float(np.square(logits - want).sum()) for logits in have)
    assert after < 0.9 * before
    assert [q.weight.scale for q in learned.layers] == [q.weight.scale for q in plan.layers]
    assert learned != plan
    qgraph.apply(DEMO / "digits.onnx", learned)  # the file is written from the plan alone


def test_threads_and_interruptions_change_nothing(start, tmp_path):
    plan, view, samples = start
    whole = reconstruct_blocks(plan, view, samples, config=QUICK, job=Job(threads=1))

    class Enough(Exception):
        pass

    class Stops:
        def stage(self, title, total=None, *, pieces=1):
            import contextlib

            @contextlib.contextmanager
            def entered():
                def advance(units, note=""):
                    if title == "reconstruct":
                        raise Enough

                yield advance

            return entered()

    with pytest.raises(Enough):
        reconstruct_blocks(plan, view, samples, config=QUICK, job=Job(threads=2, resume=tmp_path, progress=Stops()))
    again = reconstruct_blocks(plan, view, samples, config=QUICK, job=Job(threads=2, resume=tmp_path))
    assert again.to_json() == whole.to_json()


def test_the_gradient_of_a_grid_with_dropped_roundings():
    """Against the straight-through rule, written out in NumPy."""
    x = ir.Value(name="x", shape=ir.Shape([3, 2, 2, 2]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21, DOMAIN: 1}, name="g")
    scale, zero, highest = np.float32([0.3, 0.6]), 3, 7
    along = scale.reshape(1, 2, 1, 1)
    rounded = (RNG.random((1, 2, 2, 2)) < 0.6).astype(np.float32)
    feeds = {
        "scale": scale,
        "low": -along * zero,
        "high": along * (highest - zero),
        "zero_point": np.full(2, zero, np.uint8),
        "highest": np.uint8(highest).reshape(()),
        "rounded": rounded,
        "step": np.float32(0.3).reshape(()),
    }
    inputs = []
    for name in INPUTS:
        array = np.asarray(feeds[name])
        dtype = ir.DataType.UINT8 if array.dtype == np.uint8 else ir.DataType.FLOAT
        inputs.append(ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype)))
    graph.inputs.extend(inputs)
    y = drop_quantize(graph, x, inputs, non_negative=False)
    g = ir.Value(name="g", shape=x.shape, type=x.type)
    graph.inputs.append(g)
    product = ir.node("Mul", [y, g])
    total = ir.node("ReduceSum", [product.outputs[0]], attributes={"keepdims": 0})
    graph.extend([product, total])
    y.name, total.outputs[0].name = "y", "loss"
    total.outputs[0].type, total.outputs[0].shape = x.type, ir.Shape([])
    graph.outputs.extend([y, total.outputs[0]])
    step = gradients(ir.Model(graph, ir_version=10), "loss", ["x", "step", "low"], builder="portable")
    expand(step)
    values = RNG.normal(0, 2, (3, 2, 2, 2)).astype(np.float32)
    slope = RNG.normal(size=values.shape).astype(np.float32)
    found = Session(step).run({n: np.asarray(v) for n, v in feeds.items()} | {"x": values, "g": slope})
    steps = np.rint(values / along)
    on_grid = (np.clip(steps + zero, 0, highest) - zero) * along
    expected = np.where(rounded > 0, on_grid, values)
    np.testing.assert_allclose(found["y"], expected, atol=1e-6)
    inside = (values > feeds["low"]) & (values < feeds["high"])
    passes = inside | (rounded == 0)
    np.testing.assert_allclose(found["x_grad"], slope * passes, atol=1e-6)
    factors = along / np.float32(0.3)
    per_value = np.where(inside, on_grid / along - values / along, on_grid / along) * factors * (rounded > 0)
    np.testing.assert_allclose(found["step_grad"], (slope * per_value).sum(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["low_grad"], (slope * ~passes).sum(), rtol=1e-4, atol=1e-5)


def test_parts_of_images_are_the_same_in_both_networks():
    x = np.arange(2 * 3 * 9 * 8, dtype=np.float32).reshape(2, 3, 9, 8)
    places = np.arange(9 * 8, dtype=np.float32).reshape(1, 1, 9, 8).repeat(2, axis=0) + 1
    quantized, floats, important = cropped({"t": [x]}, {"t": [-x]}, {"r": [places]}, 4, edge=1, times=3, seed=1)
    assert [part.shape for part in quantized["t"]] == 3 * [(2, 3, 4, 4)]
    for part, other, counts in zip(quantized["t"], floats["t"], important["r"], strict=True):
        np.testing.assert_array_equal(part, -other)
        assert np.isin(part, x).all()
        where = part[:, :1] % 72 + 1  # what enters tells its place
        for image, place in zip(counts[:, 0], where[:, 0], strict=True):
            np.testing.assert_array_equal(image[1:-1, 1:-1], place[1:-1, 1:-1])  # inside of the cut
            top = place[0, 0] <= 8  # no cut where the image ends
            assert (image[0, 1:-1] == (place[0, 1:-1] if top else 0)).all()
    halved = cropped({"t": [x[:, :, :8]]}, {"t": [x[:, :, :8]]}, {"r": [places[:, :, :4, :4]]}, 4, seed=1)[2]
    assert halved["r"][0].shape == (2, 1, 2, 2)


def test_a_block_rounds_itself_what_the_block_before_it_rounds_too():
    """`q` stands for the rounded `h`, which both what leads to `k` and this block read."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {
        h = Neg(x)  q = Floor(h)  k = Abs(q)  y = Add(q, k)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    part = block_part(model, ("h", "k"), ("y",))
    assert [node.op_type for node in part.graph] == ["Floor", "Add"]
    assert {str(value.name) for value in part.graph.inputs} == {"h", "k"}


def test_the_edge_of_a_part_reaches_as_far_as_kernels_do():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 21]> g (float[1, 2, 16, 16] x) => (float[1, 2, 4, 4] z)
        <float[2, 2, 3, 3] v, float[2, 2, 1, 1] u, float[2, 2, 5, 5] w>
        { a = Conv<strides=[2, 2], pads=[1, 1, 1, 1]>(x, v) b = Conv(a, u)
          z = Conv<strides=[2, 2], pads=[2, 2, 2, 2]>(b, w) }"""
    )
    nodes = tuple(model.graph)
    assert margin(Block(nodes=nodes, layers=(), reads=("x",), writes=("z",))) == 1 + 0 + 2 * 2


def test_codes_that_could_saturate_are_not_moved(start):
    """The layer that reads 8 bits with weights of 8 bits: a pair of codes that grows saturates CPUs without VNNI."""
    plan, view, samples = start
    first = view.layers[0].name
    assert not never_saturates(view.by_name[first], plan.layer(first), plan.operand_grids)
    learned = reconstruct_blocks(plan, view, samples, config=QUICK, job=Job(threads=1))
    assert learned.layer(first) == plan.layer(first)
    assert learned.layer(view.layers[1].name) != plan.layer(view.layers[1].name)


def test_the_relaxation_of_adaround_ends_beside_the_float_weights(start):
    plan, view, samples = start
    config = dataclasses.replace(QUICK, adaround=1.0, drop=0.0)
    learned = reconstruct_blocks(plan, view, samples, config=config, job=Job(threads=1))
    moved = 0
    for before, after in zip(plan.layers, learned.layers, strict=True):
        if before == after:
            continue
        weight = view.by_name[before.name].weight_array()
        soft = AdaRoundWeight.between(weight, before.weight, 1.0)
        codes = SoftWeight.of(weight, after.weight, 0.0).codes()
        assert ((codes == soft.below) | (codes == soft.below + 1)).all()
        moved += 1
    assert moved > 2


def test_the_regulariser_of_adaround_and_its_slope():
    """Against central differences of f and of the weight itself."""
    grid = WeightQuant(bits=4, scale=(0.1,), zero_point=(0,), symmetric=False)
    weight = RNG.normal(0, 0.3, (5, 7)).astype(np.float32)
    step = 1e-3

    def at(shift: float) -> AdaRoundWeight:
        made = AdaRoundWeight.between(weight, grid, 0.5)
        made.logits += np.float32(shift)
        made.constrain()
        return made

    def total(soft: AdaRoundWeight, beta: float) -> np.ndarray:
        return 1 - np.abs(2 * (soft.position.astype(np.float64) - soft.below) - 1) ** beta

    here, up, down = at(0.0), at(step), at(-step)
    progress, loss = 0.6, 3.0
    beta = 2 + 18 * (1 - (progress - 0.2) / 0.8)
    found = (total(up, beta) - total(down, beta)) / (2 * step) * 0.5 * loss / weight.size
    np.testing.assert_allclose(here.pull(progress, loss), found, rtol=0.02, atol=2e-4)
    assert here.pull(0.1, loss) is None
    slope = (up.value(0.0)[0] - down.value(0.0)[0]) / (2 * step)
    inside = (here.position > here.below + 0.01) & (here.position < here.below + 0.99)
    np.testing.assert_allclose(here.value(0.0)[1][inside], slope[inside], rtol=0.02, atol=2e-4)


def test_the_command_and_bad_settings():
    with pytest.raises(UsageError, match="effort"):
        qgraph.quantize(DEMO / "digits.onnx", effort="some")
    with pytest.raises(UsageError, match="effort is for plans that are not trained: method"):
        qgraph.quantize(DEMO / "digits.onnx", method="lsqplus", effort="best")
    for setting in ({"steps": 0}, {"drop": 1.0}):
        with pytest.raises(UsageError, match=f"{next(iter(setting))} of a reconstruction must"):
            ReconstructConfig(**setting)


def test_a_block_without_a_gradient_keeps_its_codes():
    head = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 3, 6, 6] x) => (float[n, 2, 4, 4] y)'
    first, second = (", ".join(f"{v:.3f}" for v in RNG.normal(size=size)) for size in (108, 8))
    held = f"float[4, 3, 3, 3] a = {{{first}}}, float[2, 4, 1, 1] b = {{{second}}}"
    model = ir.from_onnx_text(f"{head} <{held}> {{ c = Conv(x, a) d = Atan(c) y = Conv(d, b) }}")
    samples = RNG.normal(size=(16, 3, 6, 6)).astype(np.float32)
    options = {"weights": 3, "edge_bits": 3, "activations": 4, "measure": False}
    rounded = qgraph.quantize(model, samples, rounding="second-order", **options)
    with pytest.warns(UserWarning, match="is not reconstructed"):
        learned = qgraph.quantize(model, samples, method="reconstruct", **options)
    assert [q.weight.codes for q in learned.plan.layers] == [q.weight.codes for q in rounded.plan.layers]


def changed_layers(body: str, count: int) -> list[str]:
    """The layers whose codes `reconstruct_blocks` moves, in a network of products with the weights w0, w1 and w2."""
    rng = np.random.default_rng(3)
    numbers = (", ".join(f"{v:.3f}" for v in rng.normal(0, 0.3, 256)) for _ in range(3))
    held = ", ".join(f"float[16, 16] w{index} = {{{some}}}" for index, some in enumerate(numbers))
    head = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 8, 16] x) => (float[n, 8, 16] y)'
    model = ir.from_onnx_text(f"{head} <{held}> {{ {body} }}")
    samples = rng.normal(size=(count, 8, 16)).astype(np.float32)
    bits = {"weights": 2, "edge_bits": 2, "activations": 8, "rounding": "nearest", "method": "minmax"}
    plan = qgraph.quantize(model, samples, measure=False, guard="off", **bits).plan
    given = open_given(model, samples)
    config = dataclasses.replace(QUICK, steps=60)
    learned = reconstruct_blocks(plan, GraphView(given.net), given.samples, config=config, job=Job(threads=1))
    return [a.name for a, b in zip(plan.layers, learned.layers, strict=True) if a.weight.codes != b.weight.codes]


CHAIN = "[first] a = MatMul(x, w0) b = Relu(a) [second] c = MatMul(b, w1) d = Relu(c) [third] y = MatMul(d, w2)"


@pytest.mark.parametrize("count", [3, 8, 21])
def test_fewer_samples_than_a_shard_or_a_batch(count):
    assert changed_layers(CHAIN, count) == ["first", "second", "third"]


def test_sizes_may_pass_from_block_to_block():
    """Reshape and Expand read the size of the batch, which is found far before them."""
    sizes = """
        s = Shape(x) zero = Constant <value_ints = [0]> () two = Constant <value_ints = [2]> ()
        rest = Constant <value_ints = [8, 16]> () ones = Constant <value_ints = [8, 1]> ()
        n = Gather <axis = 0> (s, zero) t = Concat <axis = 0> (n, rest) u = Concat <axis = 0> (n, ones)
    """
    body = """
        [first] a = MatMul(x, w0) b = Relu(a) r = ReduceMax <keepdims = 0> (b, two) m = Reshape(r, u) e = Expand(m, t)
        f = Sub(b, e) [second] c = MatMul(f, w1) d = Reshape(c, t) [third] g = MatMul(d, w2) y = Reshape(g, t)
    """
    assert changed_layers(sizes + body, 21) == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("layer", "bias"),
    [
        ("ConvTranspose<group = 2, strides = [2, 2]>", (6,)),
        ("ConvTranspose<group = 2, strides = [2, 2]>", None),
        ("Conv", None),
        ("Gemm<transB = 1>", (1, 6)),
        ("Gemm<transB = 1>", (1,)),
        ("Gemm<transB = 1>", None),
        ("Gemm<transB = 1, beta = 0.0>", (6,)),
    ],
)
def test_biases_of_all_shapes_are_learned(layer, bias):
    rng, op = np.random.default_rng(5), layer.split("<")[0]
    place = () if op == "Gemm" else (1, 1)
    arrays = {"w": (4, 3) if op == "ConvTranspose" else (6, 4), "v": (8, 6)}
    held = {name: rng.normal(0, 0.4, (*shape, *place)) for name, shape in arrays.items()}
    held |= {} if bias is None else {"b": rng.normal(0, 0.4, bias)}
    given = ", ".join(
        f"float[{', '.join(map(str, a.shape))}] {name} = {{{', '.join(f'{v:.3f}' for v in a.ravel())}}}"
        for name, a in held.items()
    )
    last = "Gemm<transB = 1>" if op == "Gemm" else "Conv"
    body = f"c = {layer}({', '.join(['x', 'w', *['b'] * ('b' in held)])}) d = Relu(c) y = {last}(d, v)"
    shape = (24, 4, *(5 * size for size in place))
    head = f"g (float[{', '.join(map(str, ('n', *shape[1:])))}] x) => (float[{', '.join('nchw'[: len(shape)])}] y)"
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {head} <{given}> {{ {body} }}')
    samples = rng.normal(size=shape).astype(np.float32)
    bits = {"weights": 3, "edge_bits": 3, "activations": 4, "rounding": "nearest", "method": "minmax"}
    plan = qgraph.quantize(model, samples, measure=False, guard="off", bias_correction=False, **bits).plan
    opened = open_given(model, samples)
    learned = reconstruct_blocks(
        plan, GraphView(opened.net), opened.samples, config=dataclasses.replace(QUICK, steps=100), job=Job(threads=1)
    )
    assert [any(quant.bias_shift) for quant in learned.layers] == ["beta" not in layer, True]
    want, *have = (
        Session(made).run_list({"x": samples})[0]
        for made in (opened.net.ir_model, simulate(opened.net, plan), simulate(opened.net, learned))
    )
    before, after = (float(np.square(results - want).sum()) for results in have)
    assert after < before
    qgraph.apply(model, learned)


@pytest.mark.filterwarnings("ignore:the else branch of If")
def test_a_block_with_a_body_is_left_alone():
    choice = """
        k = ReduceSum <keepdims = 0> (x) low = Constant <value_float = -1e9> () go = Greater(k, low)
        b = If (go) <then_branch = t () => (p) { p = Relu(a) }, else_branch = o () => (q) { q = Abs(a) }>
    """
    with pytest.warns(UserWarning, match="is not reconstructed: no gradient passes the body of If"):
        changed_layers(CHAIN.replace("b = Relu(a)", choice), 8)


def test_a_block_that_reads_samples_along_another_axis_is_left_alone():
    aside = """
        p = Transpose <perm = [1, 0, 2]> (x) zero = Constant <value_ints = [0]> () q = ReduceMean (p, zero)
        u = Transpose <perm = [1, 0, 2]> (a) v = Add(u, q) b = Transpose <perm = [1, 0, 2]> (v)
    """
    with pytest.warns(UserWarning, match="the samples of 'q' do not run along its first axis"):
        assert changed_layers(CHAIN.replace("b = Relu(a)", aside), 8) == []
