"""Q-Rater's search, end to end on the packaged network: what it finds, what makes it cheap, how it goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.evaluate import evaluate
from qgraph.errors import DataError, StoreError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.jobs.search import ConstantObjective
from qgraph.jobs.search import search as search_file
from qgraph.lowering.simulate import simulate
from qgraph.methods.qrater.bench import Stand, channel_sums
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.protocol import paper_plan
from qgraph.methods.qrater.search import search as run_search
from qgraph.methods.qrater.tensors import Tensors
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.plan import QuantPlan
from qgraph.running.executor import open_executor
from qgraph.samples.dataset import Batch, open_data

COARSE = SearchConfig(clips=(0.4, 0.7, 1.0), gamma_n=(-0.8, 0.0, 0.8), gamma_s=(0.25,), objective="kl", first=32)
LAYERS = 2


@pytest.fixture(scope="module")
def net(digits) -> Model:
    return normalise(load(digits), fold_bn=False)


@pytest.fixture(scope="module")
def samples(net, digits_calibration):
    return open_data(digits_calibration, net, limit=128)


@pytest.fixture(scope="module")
def base(net, samples) -> QuantPlan:
    whole = paper_plan(GraphView(net), observe(net, samples), weights=3, activations=3)
    return dataclasses.replace(whole, layers=whole.layers[:LAYERS])


@pytest.fixture
def rows(pieces_in):
    """How many scores are in the checkpoints of a folder."""
    return lambda folder: pieces_in(folder, "search scores")


def find(base, net, samples, config=COARSE, folder=None, where="local", workers=2):
    with open_executor(where, workers=workers) as executor:
        return run_search(base, net, samples, executor=executor, config=config, folder=folder)


@pytest.fixture(scope="module")
def found(base, net, samples):
    return find(base, net, samples)


def kl_of(net, plan, samples) -> float:
    lowered = Model(ir_model=simulate(net, plan), source="simulated", nbytes=0)
    return evaluate(lowered, samples, against=net).kl


def test_the_search_measures_what_the_plan_computes(net, samples, exhaustive):
    assert kl_of(net, exhaustive.plan, samples) == pytest.approx(exhaustive.history[-1][1] * -1, rel=1e-3)


@pytest.fixture(scope="module")
def exhaustive(base, net, samples):
    return find(base, net, samples, dataclasses.replace(COARSE, race=False))


def test_it_finds_a_better_plan(base, net, samples, found, exhaustive):
    assert kl_of(net, found.plan, samples) < 0.7 * kl_of(net, base, samples)
    assert kl_of(net, found.plan, samples) <= 1.01 * kl_of(net, exhaustive.plan, samples)


def test_races_save_where_there_are_candidates(base, net, samples):
    first = dataclasses.replace(base, layers=base.layers[:1])
    many = dataclasses.replace(COARSE, ingredients=("round",), gamma_n=tuple(i / 10 for i in range(-10, 11)), first=8)
    raced = find(first, net, samples, many)
    assert raced.cost.samples < 0.6 * raced.cost.asked * raced.samples
    whole = find(first, net, samples, dataclasses.replace(many, race=False))
    assert whole.history[-1][1] >= raced.history[-1][1] >= 1.01 * whole.history[-1][1]


def test_the_plan_survives_its_file(found):
    assert QuantPlan.from_json(found.plan.to_json()) == found.plan


@pytest.mark.parametrize("change", [{"reuse": False}, {"cache": False}, {"cache_bytes": 1}])
def test_what_claims_exactness_changes_nothing(base, net, samples, found, change):
    assert find(base, net, samples, dataclasses.replace(COARSE, **change)).plan == found.plan


def test_equal_candidates_are_measured_once(base, net, samples, found):
    twice = dataclasses.replace(COARSE, gamma_n=(-0.8, 0.0, 0.8, -0.8, 0.8))
    again = find(base, net, samples, twice)
    assert again.cost.asked > found.cost.asked
    assert again.cost.run == found.cost.run
    assert again.plan == found.plan


def test_workers_change_nothing(base, net, samples, found):
    assert find(base, net, samples, workers=1).plan == found.plan


def test_what_a_worker_needs_can_be_sent_however_deep_the_network_is(model_from_text):
    nodes = " ".join(f"t{i + 1} = Relu (t{i})" for i in range(1500))
    text = f'<ir_version: 8, opset_import: ["": 17]> deep (float[1, 2] t0) => (float[1, 2] t1500) {{ {nodes} }}'
    tensors = Tensors(limit=1 << 20)
    tensors.put("t0", 0, np.float32([[1, -1]]))
    stand = Stand(load(model_from_text(text)).ir_model, (), "t0", None, tensors)
    again = pickle.loads(pickle.dumps(stand))
    assert again.open().run_list({"t0": again.operand(0, None)})[0].tolist() == [[1, 0]]


def test_a_cluster_changes_nothing(base, net, samples, cluster):
    short = dataclasses.replace(base, layers=base.layers[:1])
    quick = dataclasses.replace(COARSE, ingredients=("clip",))
    assert find(short, net, samples, quick, where=cluster).plan == find(short, net, samples, quick).plan


def test_a_finished_search_replays_from_its_checkpoints(base, net, samples, found, tmp_path, rows):
    assert find(base, net, samples, folder=tmp_path).plan == found.plan
    before = rows(tmp_path)
    assert find(base, net, samples, folder=tmp_path).plan == found.plan
    assert rows(tmp_path) == before
    assert QuantPlan.load(tmp_path / "best.plan.json") == found.plan


@pytest.mark.parametrize("race", [False, True])
def test_a_finished_search_goes_on_with_another_pass(base, net, samples, race, tmp_path, rows):
    """Then all other layers are quantized, and what there is takes part: on its samples it only gets better."""
    once = dataclasses.replace(COARSE, race=race, gamma_n=(-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8))
    first = find(base, net, samples, once, folder=tmp_path)
    before = rows(tmp_path)
    twice = dataclasses.replace(once, passes=2)
    second = find(base, net, samples, twice, folder=tmp_path)
    assert second.history[: len(first.history)] == first.history
    means = [mean for _, mean in second.history]
    assert all(later >= sooner - 1e-6 for sooner, later in zip(means[LAYERS - 1 :], means[LAYERS:], strict=False))
    assert means[-1] > means[LAYERS - 1]
    assert rows(tmp_path) > before
    assert second.plan == find(base, net, samples, twice).plan
    assert find(base, net, samples, twice, folder=tmp_path).plan == second.plan


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_qrater_search as t
net = t.normalise(t.load({model!r}), fold_bn=False)
samples = t.open_data({data!r}, net, limit=128)
base = t.QuantPlan.load({plan!r})
print("ready", flush=True)
t.find(base, net, samples, folder=Path({folder!r}))
"""


def test_a_killed_search_goes_on_and_measures_nothing_twice(
    base, net, samples, found, digits, digits_calibration, tmp_path, rows
):
    folder, plan = tmp_path / "search", tmp_path / "base.json"
    plan.write_text(base.to_json())
    script = SCRIPT.format(
        tests=str(Path(__file__).parent),
        model=str(digits),
        data=str(digits_calibration),
        plan=str(plan),
        folder=str(folder),
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    deadline = time.time() + 60
    while time.time() < deadline and rows(folder) < 20:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    survived = rows(folder)
    measured: list[object] = []

    class Counting:
        def __init__(self, inner):
            self.inner = inner

        def run(self, job, shared, tasks):
            measured.extend(tasks)
            return self.inner.run(job, shared, tasks)

    with open_executor(workers=2) as executor:
        again = run_search(base, net, samples, executor=Counting(executor), config=COARSE, folder=folder)
    assert survived >= 20
    assert again.plan == found.plan
    assert survived + sum(len(job.batches) for job in measured) == rows(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 7}, "config"), ({"gamma_n": (-0.5, 0.0)}, "config"), ({"objective": "mse"}, "objective")],
)
def test_another_searchs_checkpoints_are_refused_by_name(base, net, samples, tmp_path, change, named):
    one = dataclasses.replace(base, layers=base.layers[:1])
    quick = dataclasses.replace(COARSE, ingredients=("bias",))
    find(one, net, samples, quick, folder=tmp_path)
    with pytest.raises(StoreError, match=f"of its search, the {named} is"):
        find(one, net, samples, dataclasses.replace(quick, **change), folder=tmp_path)
    other = open_data({"input": np.zeros((4, 1, 8, 8), np.float32)}, net)
    with pytest.raises(StoreError, match="of its search, the data is"):
        find(one, net, other, quick, folder=tmp_path)


def test_checkpoints_of_another_model_are_refused_by_name(base, net, samples, tmp_path, rows):
    quick = dataclasses.replace(COARSE, ingredients=("bias",))
    find(base, net, samples, quick, folder=tmp_path)
    before = rows(tmp_path)
    for name in ("model", "plan"):
        with sqlite3.connect(tmp_path / "checkpoints.sqlite") as file:
            kept = file.execute("SELECT identity FROM stages").fetchone()[0]
            file.execute("UPDATE stages SET identity = ?", (json.dumps(json.loads(kept) | {name: '"another"'}),))
        file.close()
        with pytest.raises(StoreError, match=f'of its search, the {name} is "another", here it is '):
            find(base, net, samples, quick, folder=tmp_path)
        with sqlite3.connect(tmp_path / "checkpoints.sqlite") as file:
            file.execute("UPDATE stages SET identity = ?", (kept,))
        file.close()
    find(base, net, samples, quick, folder=tmp_path)
    assert rows(tmp_path) == before > 0


def test_a_full_disk_stops_cleanly_and_what_was_written_stays_usable(
    base, net, samples, found, tmp_path, rows, monkeypatch
):
    real = sqlite3.connect

    def small(*arguments, **options):
        file = real(*arguments, **options)
        file.execute("PRAGMA max_page_count = 8")
        return file

    with monkeypatch.context() as full:
        full.setattr(sqlite3, "connect", small)
        with pytest.raises(StoreError, match=r"full.*stays usable"):
            find(base, net, samples, folder=tmp_path)
    assert rows(tmp_path) > 0
    assert find(base, net, samples, folder=tmp_path).plan == found.plan


def test_bayesian_optimisation_adds_points_and_is_never_worse_on_its_samples(base, net, samples):
    one = dataclasses.replace(base, layers=base.layers[:1])
    grid = dataclasses.replace(COARSE, ingredients=("round",), race=False)
    plain = find(one, net, samples, grid)
    more = find(one, net, samples, dataclasses.replace(grid, search="bo", further=6))
    assert more.history[0][1] >= plain.history[0][1] - 1e-7
    assert more.cost.run > plain.cost.run
    assert more.cost.asked == plain.cost.asked + 12


def test_bayesian_optimisation_adds_at_most_half_of_the_grids_cost(base, net, samples, capfd):
    one = dataclasses.replace(base, layers=base.layers[:1], activations=())
    grid = SearchConfig(ingredients=("clip", "round"))
    plain = find(one, net, samples, grid)
    more = find(one, net, samples, dataclasses.replace(grid, search="bo"))
    assert more.cost.run > plain.cost.run
    assert more.cost.samples < 1.5 * plain.cost.samples
    assert more.history[0][1] >= plain.history[0][1]
    assert capfd.readouterr().out == ""  # bayes_opt prints where points repeat


def test_objectives_that_cannot_be_measured(digits, net, base, digits_calibration):
    with np.load(digits_calibration) as archive:
        images = archive["images"][:40]
    with pytest.raises(DataError, match="needs labels and the data have none"):
        search_file(digits, {"images": images}, config=dataclasses.replace(COARSE, objective="accuracy"))
    broken = np.full((8, 1, 8, 8), np.float32(3e38))
    with pytest.raises(DataError, match="NaN or infinite"):
        find(base, net, open_data({"input": broken}, net))
    labels = np.full(40, 77)
    with pytest.raises(DataError, match="labels must be whole numbers from 0 to 9"):
        search_file(digits, {"images": images, "labels": labels}, config=dataclasses.replace(COARSE, objective="loss"))


def test_a_constant_objective_is_an_error(digits, digits_calibration):
    with np.load(digits_calibration) as archive:
        images = archive["images"][:32]
        predicted = archive["labels"][:32]
    with pytest.raises(ConstantObjective, match="the same for every candidate"):
        search_file(
            digits,
            {"images": images, "labels": predicted},
            config=dataclasses.replace(COARSE, objective="accuracy", ingredients=("bias",)),
            weights=8,
            activations=8,
        )


@pytest.mark.parametrize("change", [{"confidence": 1.0}, {"clips": (1.5,)}, {"ingredients": ()}, {"objective": "x"}])
def test_settings_that_make_no_search(change):
    with pytest.raises(UsageError):
        dataclasses.replace(COARSE, **change)


def test_what_is_deployed_is_what_was_measured(digits, digits_calibration):
    one_more = dataclasses.replace(COARSE, clips=(0.6, 1.0), gamma_n=(-0.8, 0.0, 0.8))
    searched = search_file(digits, digits_calibration, limit=64, weights=3, activations=3, config=one_more)
    assert any(layer.weight.rounding is not None for layer in searched.plan.layers)
    assert any(a.rounding is not None and a.rounding.subdivision > 1 for a in searched.plan.activations)
    kl = {}
    for name, plan, form in (
        ("base", searched.base, "qdq"),
        ("found", searched.plan, "qdq"),
        ("float", searched.plan, "float"),
    ):
        model = qgraph.apply(digits, plan, format=form)
        kl[name] = evaluate(model, digits_calibration, against=digits, limit=64).kl
    assert kl["found"] < 0.8 * kl["base"]
    assert kl["float"] == pytest.approx(-searched.found.history[-1][1], rel=1e-3)
    assert kl["float"] == pytest.approx(kl["found"], rel=0.3)  # integer kernels round sums to 8 bits once more


def test_quantize_searches_too(digits, digits_calibration):
    result = qgraph.quantize(
        digits, digits_calibration, method="qrater", clip="mse", rounding="nearest", limit=32, weights=4
    )
    assert result.plan.recipe == "qrater"
    assert any(layer.bias_shift for layer in result.plan.layers)


def test_a_traced_batch_size_changes_nothing(base, net, samples):
    """32 at a time by the model's shape, so that the last batch is filled up, finds what an open batch finds."""
    few = dataclasses.replace(samples, limit=100)
    traced = Model(ir_model=net.ir_model.clone(), source="traced", nbytes=0, digest=net.digest)
    value = traced.ir_model.graph.inputs[0]
    value.shape = ir.Shape([32, *value.shape[1:]])
    padded = open_data(samples.description, traced, limit=100)
    assert [batch.padded_to for batch in padded.batches(32)] == [None, None, None, 32]
    first = dataclasses.replace(base, layers=base.layers[:1])
    assert find(first, traced, padded).plan == find(first, net, few).plan


def test_a_channels_mean_is_over_all_that_is_real():
    """Rows that a graph folds into the batch count; rows that only fill a traced batch do not."""
    rows = np.arange(60.0).reshape(12, 5)
    folded = channel_sums(rows, 1, Batch(feeds={}, count=3))
    np.testing.assert_allclose(folded, 3 * rows.mean(axis=0))
    filled = channel_sums(rows[:4], -1, Batch(feeds={}, count=3, padded_to=4))
    np.testing.assert_allclose(filled, rows[:3].sum(axis=0))
