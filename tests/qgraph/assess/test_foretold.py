"""Latencies are foretold from kernel times: those of the layers as planned, and of the borders of codes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import qgraph
from qgraph.assess import kernel_table
from qgraph.assess.foretold import FloatTimes, Foreteller
from qgraph.assess.kernel_table import Kernel, KernelTable
from qgraph.errors import ModelError, QGraphError, QualityWarning, UsageError
from qgraph.graph.sites import GraphView
from qgraph.jobs.in_time import TargetLatency, foreteller, within, without_slow_layers
from qgraph.running import profile
from qgraph.running.profile import KernelTime
from tests.conftest import DEMO


class Times:
    """A table of given times: of layers in milliseconds, how they run; everything else takes none."""

    def __init__(self, **milliseconds):
        self.milliseconds, self.asked = milliseconds, []

    def __getitem__(self, kernel):
        self.asked.append(kernel)
        return 1e-3 * self.milliseconds.get(kernel.runs, 0) if kernel.op in ("Conv", "Gemm") else 0.0

    def settle(self, other):
        return False


@pytest.fixture(scope="module")
def demo():
    result = qgraph.quantize(
        DEMO / "digits.onnx", DEMO / "digits_calibration.npz", limit=32, method="minmax", measure=False
    )
    return result, next(iter(result.samples.batches(1))).feeds


def told(demo, **milliseconds):
    result, feeds = demo
    foretell = Foreteller(GraphView(result.net), feeds, table=Times(**milliseconds))
    foretell.float_seconds = 7e-3
    foretell.times = FloatTimes(names=frozenset(), layers=7e-3, moving=0.0, others={})
    return foretell


def test_layers_take_the_time_of_their_kernels(demo):
    found = told(demo, floats=1, integers=0.25)(demo[0].plan)
    assert [x.runs for x in found.layers] == ["integers"] * 7
    assert found.ratio == pytest.approx(0.25)  # seven layers of a millisecond are all of the float model


def test_layers_wait_half_as_long_on_codes(demo):
    found = told(demo, floats=0.5, integers=0.3)(demo[0].plan)  # 3.5 milliseconds alone, 7 in the float model
    assert found.ratio == pytest.approx((7 * 0.3 + 3.5 / 2) / 7)


def test_layers_that_take_less_than_alone_take_as_much_less_on_codes(demo):
    found = told(demo, floats=2, integers=0.5)(demo[0].plan)
    assert found.ratio == pytest.approx(0.5 * 7 * 0.5 / 7)


def test_layers_in_floats_keep_their_time(demo):
    plan = demo[0].plan.map_layers(lambda q: dataclasses.replace(q, runs="floats"))
    foretell = told(demo, floats=1, integers=0.25)
    found = foretell(dataclasses.replace(plan, activations=()))
    assert found.ratio == pytest.approx(1.0)
    assert all(kernel.runs == "floats" for kernel in foretell.table.asked)


def test_layers_that_the_plan_leaves_out_keep_their_time(demo):
    plan = demo[0].plan
    found = told(demo, floats=1, integers=0.25)(dataclasses.replace(plan, layers=plan.layers[1:]))
    assert found.ratio == pytest.approx((1 + 6 * 0.25) / 7)


def test_operators_that_stay_in_floats_keep_their_time(demo):
    foretell = told(demo, floats=1, integers=0.25)
    foretell.float_seconds, foretell.times = 14e-3, dataclasses.replace(foretell.times, others={"Erf": 7e-3})
    assert foretell(demo[0].plan).ratio == pytest.approx((0.25 + 1) / 2)


def test_the_kernels_of_the_float_model_take_no_longer_than_the_model(demo):
    view = GraphView(demo[0].net)
    kernels = [KernelTime("a", "Conv", 3.0), KernelTime("b", "Transpose", 2.0), KernelTime("c", "Erf", 3.0)]
    times = FloatTimes.of(view, kernels, most=4.0)
    assert (times.layers, times.moving, times.others) == (1.5, 1.0, {"Erf": 1.5})
    assert FloatTimes.of(view, kernels, most=9.0).total == 8.0


def test_kernels_that_move_values_move_a_quarter_of_the_bytes(demo):
    foretell = told(demo, floats=1, integers=0.25)
    foretell.float_seconds, foretell.times = 14e-3, dataclasses.replace(foretell.times, moving=7e-3)
    assert foretell(demo[0].plan).ratio == pytest.approx(0.25)


CHOSEN = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[N,32,8,8] x) => (float[N,32,8,8] y) {
    y = If (c) <
        then_branch = t () => (p) { a = Conv <kernel_shape=[1,1]> (x, w) p = Relu (a) },
        else_branch = e () => (q) {
            b = Conv <kernel_shape=[1,1]> (x, w) d = Relu (b) q = Conv <kernel_shape=[1,1]> (d, w)
        }
    >
}"""


@pytest.mark.filterwarnings("ignore:the (then|else) branch of If")
@pytest.mark.parametrize(("taken", "names"), [(True, {"a"}), (False, {"b", "q"})])
def test_layers_of_the_branch_that_is_taken_are_foretold(taken, names):
    model, rng = onnx.parser.parse_model(CHOSEN), np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 1, (32, 32, 1, 1)).astype(np.float32), "w"))
    feeds = {"x": rng.normal(size=(8, 32, 8, 8)).astype(np.float32), "c": np.array(taken)}
    result = qgraph.quantize(model, feeds, method="minmax", activations=8, measure=False)
    view = GraphView(result.net)
    found = told((result, next(iter(result.samples.batches(1))).feeds), floats=1, integers=0.25)(result.plan)
    assert {str(view.by_name[layer.name].output.name) for layer in found.layers} == names
    assert {layer.runs for layer in found.layers} == {"integers"}


LOOPED = """<ir_version: 8, opset_import: ["": 17]> g (float[N,32,8,8] x) => (float[N,32,8,P] y) {
    three = Constant <value = int64 {3}> ()
    h = Conv <kernel_shape=[1,1]> (x, w)
    y = Loop (three, , h) <body = b (int64 i, bool go, s) => (go2, t) {
        go2 = Identity (go) a = Conv <kernel_shape=[1,1]> (s, w) d = Relu (a) t = Concat <axis=3> (d, x) }>
}"""


def test_layers_of_a_loop_are_a_part_of_it():
    """Their tensors have values of several shapes."""
    model, rng = onnx.parser.parse_model(LOOPED), np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.2, (32, 32, 1, 1)).astype(np.float32), "w"))
    feeds = {"x": rng.normal(size=(8, 32, 8, 8)).astype(np.float32)}
    result = qgraph.quantize(model, feeds, method="minmax", activations=8, measure=False)
    assert {layer.runs for layer in result.plan.layers} == {"integers"}
    assert len(result.plan.layers) == 2
    found = told((result, feeds), floats=1, integers=0.25)(result.plan)
    assert [layer.name for layer in found.layers] == ["Conv_h"]


BRANCHED = """<ir_version: 8, opset_import: ["": 17]> g (float[N,8,8,8] x) => (float[N,8,8,8] y) {
    a = Conv <kernel_shape=[1,1]> (x, w)
    h = HardSigmoid (a)
    m = Mul (a, h)
    b = Conv <kernel_shape=[1,1]> (m, w)
    s = Add (b, c)
    r = Relu (s)
    y = Conv <kernel_shape=[1,1]> (r, w)
}"""


@pytest.fixture(scope="module")
def branched():
    model, rng = onnx.parser.parse_model(BRANCHED), np.random.default_rng(0)
    arrays = {"w": rng.normal(0, 0.3, (8, 8, 1, 1)), "c": rng.normal(0, 1, (1, 8, 8, 8))}
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    x = rng.normal(0, 1, (16, 8, 8, 8)).astype(np.float32)
    return qgraph.quantize(model, x, method="minmax", measure=False), {"x": x[:1]}


def asked(branched, **times):
    """What a table is asked for by operator, when the float model runs kernels of these names."""
    foretell = Foreteller(GraphView(branched[0].net), branched[1], table=Times(floats=1, integers=1))
    foretell.times = FloatTimes(**({"names": frozenset(), "layers": 3e-3, "moving": 0.0, "others": {}} | times))
    foretell(branched[0].plan)
    return Counter((kernel.op, kernel.runs) for kernel in foretell.table.asked)


def test_activations_that_are_merged_in_floats_alone_are_timed_apart(branched):
    merged = asked(branched)
    assert (merged["HardSigmoid", "floats"], merged["Mul", "floats"], merged["Add", "floats"]) == (1, 1, 1)
    names = frozenset(node.name for node in branched[0].net.graph)
    apart = asked(branched, names=names)
    assert not any(apart[op, "floats"] for op in ("HardSigmoid", "Mul", "Add"))


def test_sums_with_constants_run_in_floats(branched):
    kernels = asked(branched)
    assert not kernels["Add", "integers"]
    assert kernels["QuantizeLinear", "floats"] == 3  # the input, and what enters codes again behind Mul and Relu


def test_entering_and_leaving_codes_costs(demo):
    foretell = told(demo, floats=1, integers=0.25)
    foretell(demo[0].plan)
    borders = [k for k in foretell.table.asked if k.op.endswith("Linear")]
    assert [k.op for k in borders][:1] == ["QuantizeLinear"]  # the input
    assert borders[0].operand == (1, 1, 8, 8)


def test_slow_kernels_give_way_to_floats(demo):
    foretell = told(demo, floats=0.5, integers=2.0)
    plan = without_slow_layers(demo[0].plan, foretell)
    assert all(q.runs == "floats" for q in plan.layers)
    assert plan.activations == ()
    assert without_slow_layers(demo[0].plan, told(demo, floats=1, integers=0.5)) == demo[0].plan


def test_a_target_is_met_or_refused(demo):
    plan = demo[0].plan
    assert within(TargetLatency(ratio=0.3), plan, told(demo, floats=1, integers=0.25)) == plan
    slow = told(demo, floats=0.5, integers=2.0)
    assert within(TargetLatency(ratio=1.01), plan, slow).notes[-1].startswith("7 layers run in floats")
    with pytest.raises(
        QGraphError,
        match=r"no plan with these options takes at most 0\.1 of the float model's: 0\.25 .* are foretold.*'",
    ):
        within(TargetLatency(ratio=0.1), plan, told(demo, floats=1, integers=0.25))


def test_a_near_miss_is_only_warned_of(demo):
    with pytest.warns(QualityWarning, match="0.25 of the float model's time is foretold"):
        assert within(TargetLatency(ratio=0.2), demo[0].plan, told(demo, floats=1, integers=0.25)) == demo[0].plan


@pytest.mark.parametrize(
    ("text", "target"),
    [("0.6", TargetLatency(ratio=0.6)), ("60%", TargetLatency(ratio=0.6)), ("5 ms", TargetLatency(seconds=0.005))],
)
def test_targets_are_ratios_or_milliseconds(text, target):
    assert TargetLatency.parse(text) == target


@pytest.mark.parametrize("text", ["", "fast", "-1", "0", "5s", "1.2.3"])
def test_other_targets_are_refused(text):
    with pytest.raises(UsageError, match="target_latency is a ratio to the float model"):
        TargetLatency.parse(text)


def test_kernels_are_measured_once_and_kept(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel_table, "_measured", lambda kernel: calls.append(kernel) or (0.5, 1.0))
    kernel = Kernel(op="Gemm", operand=(1, 8), weight=(8, 4))
    for _ in range(2):
        table = KernelTable(tmp_path)
        assert table[kernel] == 0.5
        table.save()
    assert calls == [kernel]
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["seconds"] == {str(kernel): 0.5}


def test_new_kernels_are_measured_in_turns_and_the_least_counts(tmp_path, monkeypatch):
    alone, others = iter([0.8, 0.2, 0.6, 0.6, 0.6, 0.6]), []
    monkeypatch.setattr(kernel_table, "_measured", lambda kernel: (0.5, 0.5))
    monkeypatch.setattr(kernel_table, "_alone", lambda kernel: next(alone))
    table, kernel = KernelTable(tmp_path), Kernel(op="Gemm", operand=(1, 8), weight=(8, 4))
    assert not table.settle(lambda: others.append(0))  # nothing is new
    assert table[kernel] == 0.5
    assert table.settle(lambda: others.append(1))
    assert table[kernel] == 0.1  # half of the shortest run of its model
    assert others == [1] * 6
    table.save()
    assert not table.settle(lambda: others.append(2))


def test_what_a_run_takes_besides_kernels_stays(demo):
    foretell = told(demo, floats=1, integers=0.25)
    foretell.float_seconds = 10e-3  # of which kernels take 7
    assert foretell(demo[0].plan).seconds == pytest.approx(3e-3 + 7 * 0.25e-3)


def test_a_damaged_table_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_table, "_measured", lambda kernel: (0.5, 1.0))
    table = KernelTable(tmp_path)
    table.path.write_text("{ not json")
    assert KernelTable(tmp_path)[Kernel(op="Gemm", operand=(1, 8), weight=(8, 4))] == 0.5


@pytest.mark.parametrize("runs", ["floats", "integers", "dynamic"])
@pytest.mark.parametrize("codes", [True, False])
def test_every_kind_of_kernel_runs(runs, codes):
    attributes = (("kernel_shape", (3, 3)), ("pads", (1, 1, 1, 1)))
    gemm = Kernel(op="Gemm", operand=(64, 256), weight=(64, 256), attributes=(("transB", 1),), runs=runs, codes=codes)
    kernels = [Kernel(op="MatMul", operand=(64, 256), weight=(256, 64), runs=runs, codes=codes), gemm]
    if runs != "dynamic":
        conv = Kernel(
            op="Conv", operand=(1, 8, 64, 64), weight=(16, 8, 3, 3), attributes=attributes, runs=runs, codes=codes
        )
        pool = Kernel(op="MaxPool", operand=(1, 8, 256, 256), attributes=(("kernel_shape", (3, 3)),), runs=runs)
        kernels += [conv, pool, Kernel(op="Add", operand=(1, 8, 256, 256), runs=runs)]
    for kernel in kernels:
        seconds, share = kernel_table._measured(kernel)
        assert 0 < seconds < 1
        assert 0 < share <= 1


def test_a_clock_that_stood_still_leaves_the_times_of_the_profile(monkeypatch):
    monkeypatch.setattr(profile, "seconds_alone", lambda *_, **__: 0.0)
    seconds, share = kernel_table._measured(Kernel(op="MatMul", operand=(64, 256), weight=(256, 64), runs="floats"))
    assert seconds > 0
    assert 0 < share <= 1


def test_a_pool_of_codes_is_timed_as_it_runs_between_convolutions():
    pool = Kernel(op="MaxPool", operand=(1, 8, 9, 7), attributes=(("kernel_shape", (3, 3)),), runs="integers")
    model, feeds = kernel_table._model(pool)
    assert [node.op_type for node in model.graph.node] == ["NhwcMaxPool"]
    assert feeds["x"].shape == (1, 9, 7, 8)


def test_a_model_is_run_on_noise_without_samples(demo):
    assert foreteller(demo[0].net, None).shapes["input"] == (1, 1, 8, 8)


def test_a_model_that_runs_on_no_noise_asks_for_samples(demo, monkeypatch):
    def refuse(*_):
        raise ModelError("onnxruntime cannot run the model: Invalid argument")

    monkeypatch.setattr("qgraph.jobs.in_time.Foreteller", refuse)
    with pytest.raises(ModelError, match="does not run on noise: give data"):
        foreteller(demo[0].net, None)


def test_whatif_foretells_both_plans(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("QGRAPH_CACHE", str(tmp_path))
    result = demo[0]
    found = qgraph.whatif(DEMO / "digits.onnx", result.plan, ["*:weights=4"], statistics=result.observed, latency=True)
    assert found.latency[0].ratio > 0
    assert set(found.to_dict()["latency"]) == {"before", "after"}
    assert list(tmp_path.iterdir())
