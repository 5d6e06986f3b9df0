"""Distillation: statistics found, loss computed, data deterministic and resumable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qgraph.errors import DataError, QGraphError, StoreError, UsageError
from qgraph.gradient.adam import Adam
from qgraph.methods.zeroq.assumed_statistics import assumed_targets
from qgraph.methods.zeroq.distill import DistillConfig, distill
from qgraph.methods.zeroq.objective import objective, step_bytes
from qgraph.methods.zeroq.rates import rate_after
from qgraph.methods.zeroq.settling import WINDOW, Settling
from qgraph.methods.zeroq.spectrum import natural_noise
from qgraph.methods.zeroq.statistics import batch_norms
from qgraph.onnxfile.folding import fold_batch_normalization
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session
from qgraph.samples.preprocessing import Preprocessing

QUICK = DistillConfig(steps=12, rate=0.5, settled=0.0, batch=4, checkpoint_every=5)


def _numbers(shape: tuple[int, ...], seed: int) -> str:
    values = np.random.default_rng(seed).normal(size=shape).ravel() * 0.4
    return f"{{{', '.join(f'{v:.4f}' for v in values)}}}"


CONSTANTS = f"""float[4, 3, 3, 3] w = {_numbers((4, 3, 3, 3), 0)}, float[4] gamma = {{1.0, 0.5, -2.0, 0.3}},
 float[4] beta = {{0.1, 0.2, -0.3, 0.0}},
 float[4] mean = {{0.2, -0.1, 0.0, 0.4}}, float[4] var = {{1.0, 0.5, 2.0, 0.3}},
 float[2, 4, 1, 1] v = {_numbers((2, 4, 1, 1), 1)}"""
HEADER = '<ir_version: 8, opset_import: ["": 17]>'
NET = f"""{HEADER} m (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) <{CONSTANTS}> {{
    c = Conv<pads = [1, 1, 1, 1]>(x, w)
    n = BatchNormalization(c, gamma, beta, mean, var)
    r = Relu(n)
    y = Conv(r, v)
}}"""
CHAINED = f"""{HEADER} m (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) <{CONSTANTS}> {{
    c = Conv<pads = [1, 1, 1, 1]>(x, w)
    size = Shape(mean)
    wide = Expand(mean, size)
    like = CastLike(wide, c)
    double = Cast<to = 11>(var)
    single = Cast<to = 1>(double)
    g = Identity(gamma)
    n = BatchNormalization(c, g, beta, like, single)
    r = Relu(n)
    y = Conv(r, v)
}}"""


def _model(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def _images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 3, 6, 6)).astype(np.float32)


def _expected_loss(x: np.ndarray, per: str) -> float:
    """Eq. 3 written out, on the convolution's output and the input."""
    c = Session(normalise(load(_model(NET)), fold_bn=False).ir_model, outputs=["c"], threads=1).run({"x": x})["c"]
    layers = [
        (x, np.zeros(3), np.ones(3)),
        (c, np.array([0.2, -0.1, 0.0, 0.4]), np.sqrt([1.0, 0.5, 2.0, 0.3])),
    ]
    total = 0.0
    for t, mean, std in layers:
        axes = (2, 3) if per == "image" else (0, 2, 3)
        m, s = t.astype(np.float64).mean(axes), np.sqrt(t.astype(np.float64).var(axes) + 1e-6)
        rows = len(x) if per == "image" else 1
        total += (((m - mean) ** 2).sum() + ((s - std) ** 2).sum()) / rows
    return total


@pytest.mark.parametrize("per", ["image", "batch"])
def test_loss_is_equation_3(per: str) -> None:
    x = _images()
    goal = objective(load(_model(NET)), batch=4, per=per, threads=1)  # type: ignore[arg-type]
    step = goal({"x": x})
    np.testing.assert_allclose(step.loss, _expected_loss(x, per), rtol=1e-5)
    direction = np.random.default_rng(0).normal(size=x.shape)
    ahead, behind = (_expected_loss(x + s * direction.astype(np.float32), per) for s in (1e-2, -1e-2))
    np.testing.assert_allclose(np.vdot(step.gradients["x"], direction), (ahead - behind) / 2e-2, rtol=2e-3)


@pytest.mark.parametrize("text", [NET, CHAINED], ids=["initializers", "chains"])
def test_statistics_are_found(text: str) -> None:
    (norm,) = batch_norms(load(_model(text)).ir_model)
    np.testing.assert_allclose(norm.mean, [0.2, -0.1, 0.0, 0.4], rtol=1e-6)
    np.testing.assert_allclose(norm.std**2, [1.0, 0.5, 2.0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(norm.gain, [1.0, 0.5, -2.0, 0.3] / np.sqrt(norm.std**2 + 1e-5), rtol=1e-6)


def test_parameters_that_depend_on_the_data_are_not_statistics() -> None:
    text = NET.replace(
        "c = Conv", "p = GlobalAveragePool(x) q = ReduceMean<axes = [0, 1, 2, 3], keepdims = 0>(p) c = Conv"
    )
    text = text.replace("n = Batch", "moved = Add(mean, q) n = Batch").replace("beta, mean, var)", "beta, moved, var)")
    assert batch_norms(load(_model(text)).ir_model) == []


def test_distillation_lowers_the_loss_and_gives_what_was_asked() -> None:
    seen: list[tuple[int, int, float]] = []
    found = distill(_model(NET), count=6, config=QUICK, threads=1, on_step=lambda *step: seen.append(step))
    assert found.inputs["x"].shape == (6, 3, 6, 6)
    assert found.inputs["x"].dtype == np.float32
    assert found.losses.shape == (2, 12)
    assert (found.losses[:, -1] < 0.5 * found.losses[:, 0]).all()
    assert (found.layers, found.note) == (1, "")
    assert [done for done, _, _ in seen] == list(range(1, 25))
    assert {total for _, total, _ in seen} == {24}


def test_the_seed_decides_and_threads_do_not() -> None:
    one, two, other = (
        distill(_model(NET), count=8, config=QUICK, threads=t, seed=s).inputs["x"] for t, s in ((1, 5), (2, 5), (1, 6))
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 0.1
    assert np.abs(one[:4] - one[4:]).max() > 0.1  # batches differ too


def test_an_interrupted_job_is_resumed_to_the_same_result(tmp_path: Path, pieces_in) -> None:
    whole = distill(_model(NET), count=8, config=QUICK, threads=1)

    def interrupt(done: int, total: int, loss: float) -> None:
        if done == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(_model(NET), count=8, config=QUICK, threads=1, resume=tmp_path / "job", on_step=interrupt)
    assert pieces_in(tmp_path / "job", "distillation") == 2
    again = distill(_model(NET), count=8, config=QUICK, threads=1, resume=tmp_path / "job")
    np.testing.assert_array_equal(again.inputs["x"], whole.inputs["x"])
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_a_cluster_distils_the_same(tmp_path: Path, pieces_in, cluster: str) -> None:
    seen: list[tuple[int, int, float]] = []
    here = distill(_model(NET), count=10, config=QUICK, threads=1)

    def interrupt(done: int, total: int, loss: float) -> None:
        seen.append((done, total, loss))
        raise KeyboardInterrupt

    job = {"count": 10, "config": QUICK, "resume": tmp_path, "executor": cluster}
    with pytest.raises(KeyboardInterrupt):
        distill(_model(NET), on_step=interrupt, **job)
    assert pieces_in(tmp_path, "distillation") == len(seen) == 1
    there = distill(_model(NET), on_step=lambda *step: seen.append(step), **job)
    np.testing.assert_array_equal(there.inputs["x"], here.inputs["x"])
    np.testing.assert_array_equal(there.losses, here.losses)
    assert seen[-1][:2] == (36, 36)


def test_checkpoints_of_another_job_are_refused(tmp_path: Path) -> None:
    distill(_model(NET), count=4, config=QUICK, threads=1, resume=tmp_path)
    with pytest.raises(StoreError, match="of its distillation, the seed is 0, here it is 1"):
        distill(_model(NET), count=4, config=QUICK, threads=1, seed=1, resume=tmp_path)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("float[N, 5] x", (4, 5)),
        ("float[N, 5, 7] x", (4, 5, 7)),
        ("float[2, 5, 3, 2, 2] x", (2, 5, 3, 2, 2)),
    ],
)
def test_any_rank_and_fixed_batches(text: str, shape: tuple[int, ...]) -> None:
    ones = "{1.0, 1.0, 1.0, 1.0, 1.0}"
    model = _model(
        f"{HEADER} m ({text}) => ({text.replace(' x', ' y')}) <float[5] s = {ones}, float[5] b = {ones}, "
        f"float[5] m = {ones}, float[5] v = {ones}> {{ y = BatchNormalization(x, s, b, m, v) }}"
    )
    found = distill(model, count=4, config=QUICK, threads=1)
    assert found.inputs["x"].shape == (4, *shape[1:])
    assert (found.losses[:, -1] < found.losses[:, 0]).all()


def test_several_inputs_are_distilled_together() -> None:
    text = NET.replace("(float[N, 3, 6, 6] x)", "(float[N, 3, 6, 6] x, float[N, 3, 6, 6] u)")
    text = text.replace("c = Conv<pads = [1, 1, 1, 1]>(x, w)", "t = Add(x, u) c = Conv<pads = [1, 1, 1, 1]>(t, w)")
    found = distill(_model(text), count=4, config=QUICK, threads=1)
    assert set(found.inputs) == {"x", "u"}


FOLDED = NET.replace("float[4] gamma", "float[4] b = {0.3, -0.2, 0.1, 0.5}, float[4] gamma")
FOLDED = FOLDED.replace("c = Conv<pads = [1, 1, 1, 1]>(x, w)", "c = Conv<pads = [1, 1, 1, 1]>(x, w, b)")
FOLDED = FOLDED.replace("n = BatchNormalization(c, gamma, beta, mean, var)", "").replace("Relu(n)", "Relu(c)")


def _folded_outputs(x: np.ndarray) -> np.ndarray:
    return Session(normalise(load(_model(FOLDED))).ir_model, outputs=["c"], threads=1).run({"x": x})["c"]


def _folded_loss(x: np.ndarray) -> float:
    """Distance of the input from mean 0 and deviation 1 over the batch, and of the folded convolution's output from the
    mean on natural noise and the root of the deviation there, in units of that root."""
    noise = _folded_outputs(natural_noise({"x": x.shape}, seed=0)["x"])
    mean, std = noise.mean((0, 2, 3)), np.sqrt(noise.std((0, 2, 3)))
    c = (_folded_outputs(x) - mean[:, None, None]) / std[:, None, None]
    moments = [(t.mean((0, 2, 3)), t.std((0, 2, 3))) for t in (x.astype(np.float64), c.astype(np.float64))]
    return float(sum((m**2).sum() + ((s - 1) ** 2).sum() for m, s in moments))


def test_folded_layers_are_brought_to_estimated_statistics() -> None:
    x = _images()
    step = objective(load(_model(FOLDED)), batch=4, per="batch", threads=1)({"x": x})
    np.testing.assert_allclose(step.loss, _folded_loss(x), rtol=1e-4)
    found = distill(_model(FOLDED), count=4, config=DistillConfig(batch=4), threads=1, seed=1)
    assert found.layers == 0
    assert "do_constant_folding=False" in found.note
    assert "\n" not in found.note
    assert found.losses.shape == (1, 60)
    assert found.losses[0, -1] < 0.5 * found.losses[0, 0]
    np.testing.assert_allclose(found.losses[0, -1], _folded_loss(found.inputs["x"]), rtol=0.05)
    assert np.abs(found.inputs["x"]).max() <= 3.0


@pytest.mark.parametrize(("name", "share"), [("resnet20", 0.8), ("resnet32", 0.8), ("relu6_dw", 1.0), ("silu_se", 1.0)])
def test_folded_statistics_are_estimated_better_than_by_mean_0_and_deviation_1(
    name: str, share: float, shared: Path
) -> None:
    """Much better where training moved them far from there, and never worse."""
    plain = normalise(load(shared / "models" / f"cifar10_{name}.onnx"), fold_bn=False).ir_model
    net = plain.clone()
    fold_batch_normalization(net)
    for value in net.graph.inputs:
        value.shape = ir.Shape([16, 3, 32, 32])
    true = {n.output: (n.shift, np.abs(n.gain) * n.std) for n in batch_norms(plain)}
    targets = [t for t in assumed_targets(net, natural_noise({"input": (16, 3, 32, 32)}, seed=0)) if t.tensor in true]
    assert len(targets) > 15

    def off(mean: np.ndarray, std: np.ndarray, output: str) -> tuple[float, float]:
        beta, gamma = true[output]
        alive = gamma > 1e-3
        log = np.log(std[alive] / gamma[alive])
        return float(np.sqrt(np.mean(((mean - beta)[alive] / gamma[alive]) ** 2))), float(np.sqrt(np.mean(log**2)))

    estimated = np.array([off(t.shift, t.gain, t.tensor) for t in targets])
    standard = np.array([off(t.mean, t.std, t.tensor) for t in targets])
    assert estimated.mean(0).sum() < share * standard.mean(0).sum()


@pytest.mark.parametrize(
    "text",
    [
        FOLDED.replace("(x, w, b)", "(x, w)"),
        FOLDED.replace("Conv(r, v)", "ReduceMean<axes = [1], keepdims = 1>(r)").replace("float[N, 2,", "float[N, 1,"),
        FOLDED.replace("(x, w, b)", "(h, w, b)").replace(
            "{\n    c", "{ s = Constant<value = float {99.0}>() h = Mul(x, s)\n    c"
        ),
        FOLDED.replace("(x, w, b)", "(h, w, b)").replace("{\n    c", "{ h = Trilu(x)\n    c"),
    ],
    ids=["no bias", "a head", "out of range", "no gradient"],
)
def test_without_anything_to_distil_from_natural_noise_and_a_note(text: str) -> None:
    found = distill(_model(text), count=16, seed=2)
    assert (found.layers, found.losses.size) == (0, 0)
    assert "no BatchNormalization to distil from" in found.note
    x = found.inputs["x"]
    assert x.shape == (16, 3, 6, 6)
    np.testing.assert_allclose(x.mean((2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(x.std((2, 3)), 1.0, atol=1e-4)
    neighbours = (x[..., 1:] * x[..., :-1]).mean()
    assert neighbours > 0.3  # independent noise has 0
    with pytest.raises(QGraphError, match=r"no BatchNormalization|rule"):
        objective(load(_model(text)), batch=4, per="batch", threads=1)


@pytest.mark.parametrize("text", [NET, FOLDED, FOLDED.replace("(x, w, b)", "(x, w)")], ids=["kept", "folded", "noise"])
def test_what_no_pixel_can_be_is_cut_off_images(text: str) -> None:
    normalisation = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.5, 0.8, 0.9))
    ends = (np.float32([[0], [255]]) / 255 - normalisation.mean) / normalisation.std
    free, within = (
        distill(_model(text), count=6, config=dataclasses.replace(QUICK, pixels=pixels), preprocessing=normalisation)
        for pixels in (False, True)
    )
    low, high = within.inputs["x"].min((0, 2, 3)), within.inputs["x"].max((0, 2, 3))
    np.testing.assert_allclose([low, high], ends, rtol=1e-6)
    assert free.inputs["x"].min() < ends.min()
    assert free.inputs["x"].max() > ends.max()
    np.testing.assert_array_equal(within.losses, free.losses)  # while samples are optimised, nothing is cut


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (NET.replace("float[N, 3, 6, 6] x", "float[N, 3, H, 6] x"), DataError, r"axis \[2\] is not fixed"),
        (
            NET.replace("float[N, 3, 6, 6] x", "int64[N, 3, 6, 6] i").replace(
                "c = Conv", "x = Cast<to = 1>(i) c = Conv"
            ),
            DataError,
            "only float inputs",
        ),
    ],
)
def test_inputs_that_cannot_be_distilled(text: str, error: type[QGraphError], message: str) -> None:
    with pytest.raises(error, match=message):
        distill(_model(text), count=4, config=QUICK)


def test_a_given_shape_settles_an_open_one() -> None:
    model = _model(NET.replace("float[N, 3, 6, 6]", "float[N, 3, H, W]").replace("[N, 2, 6, 6]", "[N, 2, H, W]"))
    found = distill(model, count=4, config=QUICK, threads=1, shapes={"x": (4, 3, 5, 8)})
    assert found.inputs["x"].shape == (4, 3, 5, 8)


def test_the_rate_falls_by_a_cosine_or_where_the_loss_stays() -> None:
    cosine = DistillConfig(steps=4, rate=0.2)
    assert [round(rate_after([1.0] * n, cosine), 3) for n in (0, 2, 4)] == [0.2, 0.1, 0.0]
    plateau = DistillConfig(rate=0.5, decay="plateau", patience=2, floor=0.01)
    rates = [rate_after([3.0, 2.0] + [2.0] * n, plateau) for n in range(12)]
    np.testing.assert_allclose(rates, [0.5] * 3 + [0.05] * 3 + [0.01] * 6)
    assert rate_after([3.0, 2.0, 1.0, 0.5, 0.2], plateau) == 0.5


@pytest.mark.parametrize(("start", "low", "high"), [("uniform", 0.0, 0.1), ("gaussian", 0.7, 1.3)])
def test_where_optimisation_starts(start: Any, low: float, high: float) -> None:
    still = DistillConfig(steps=1, rate=1e-9, settled=0.0, start=start, width=0.1, batch=4)
    x = distill(_model(NET), count=8, config=still, threads=1).inputs["x"]
    assert low < x.std() < high
    assert start != "uniform" or np.abs(x).max() <= 0.1 + 1e-6


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="one sample to distil, not 0"):
        distill(_model(NET), count=0)


def test_a_step_tells_the_mean_and_deviation_of_every_channel() -> None:
    x = _images()
    step = objective(load(_model(NET)), batch=4, per="batch", threads=1)({"x": x})
    c = Session(normalise(load(_model(NET)), fold_bn=False).ir_model, outputs=["n"], threads=1).run({"x": x})["n"]
    want = [np.concatenate([getattr(t, name)((0, 2, 3)) for t in (c, x)]) for name in ("mean", "std")]
    np.testing.assert_allclose(step.mean, want[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step.std, want[1], rtol=1e-4, atol=1e-5)


def test_ranges_have_settled_when_nine_channels_of_ten_stay() -> None:
    mean, std = np.zeros(100), np.ones(100)
    settling = Settling(tolerance=0.02)
    for step in range(3 * WINDOW):
        moving = np.arange(100) < (50 if step < WINDOW else 5)
        mean, std = mean + 0.5 * moving, std * np.where(moving, 1.02, 1.0)
        settling.see(mean, std)
        assert settling.done == (step >= 2 * WINDOW - 1)
        again = Settling.restored(0.02, settling.state)
        assert again.done == settling.done
    never = Settling(tolerance=0.0)
    for _ in range(3 * WINDOW):
        never.see(mean, std)
    assert not never.done


def test_distillation_stops_when_its_ranges_have_settled() -> None:
    seen: list[tuple[int, int, float]] = []
    patient = DistillConfig(steps=200, rate=0.05, settled=0.05, batch=4)
    found = distill(_model(NET), count=8, config=patient, threads=1, on_step=lambda *step: seen.append(step))
    taken = np.isfinite(found.losses).sum(axis=1)
    assert (taken > WINDOW).all()
    assert (taken < 200).all()
    assert seen[-1][:2] == (400, 400)  # steps that were not needed count as done


def test_batches_are_as_large_as_memory_allows() -> None:
    shapes = {"x": (4, 3, 6, 6)}
    each = step_bytes(load(_model(NET)), batch=2)
    assert each == 4 * 4 * (4 + 4 + 2) * 36  # four copies of c (with n folded), r and y
    config = dataclasses.replace(QUICK, memory=2 * 3 * each)
    found = distill(_model(NET), count=7, config=config, threads=1)
    assert (len(found.losses), found.inputs["x"].shape[0]) == (3, 7)  # batches of 3
    small = dataclasses.replace(QUICK, memory=1)
    assert len(distill(_model(NET), count=2, config=small, threads=1, shapes=shapes).losses) == 1  # of a given size
    assert len(distill(_model(NET), count=3, config=small, threads=1).losses) == 3, "one at a time"


def test_adam_follows_its_equations() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=5).astype(np.float32)
    reference, mean, square = x.astype(np.float64), np.zeros(5), np.zeros(5)
    adam = Adam(shape=(5,))
    for t in range(1, 11):
        gradient = rng.normal(size=5)
        adam.update(x, gradient.astype(np.float32), 0.1 / t, t)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        reference -= 0.1 / t * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(x, reference, rtol=1e-4, atol=1e-5)
