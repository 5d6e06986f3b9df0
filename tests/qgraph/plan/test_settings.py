"""Hyper-parameters by name, and the protocols of the papers."""

from __future__ import annotations

import pytest

import qgraph
from qgraph.cli import main
from qgraph.errors import UsageError
from qgraph.methods.aciq.config import AciqConfig
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.zeroq.config import DistillConfig, MixConfig
from qgraph.methods.zeroq.distill import distill
from qgraph.plan import registry
from qgraph.plan.plan import WeightQuant
from qgraph.plan.request import choose_recipe
from qgraph.plan.settings import is_setting, parse, value_of
from qgraph.running import sessions

PAPERS = ("aciq", "lsqplus", "qrater", "zeroq")


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("zeroq.t1=200", ("zeroq.t1", 200)),
        ("zeroq.rate=0.5", ("zeroq.rate", 0.5)),
        ("zeroq.laws=no", ("zeroq.laws", False)),
        ("zeroq.count=none", ("zeroq.count", None)),
        ("zeroq.start= gaussian", ("zeroq.start", "gaussian")),
        ("qrater.clips=0.5, 1", ("qrater.clips", (0.5, 1.0))),
        ("qrater.gamma_s=", ("qrater.gamma_s", ())),
        ("lsqplus.epochs=3", ("lsqplus.epochs", 3)),
    ],
)
def test_a_setting_has_the_type_of_its_field(text, pair):
    assert is_setting(text)
    assert parse(text) == pair


@pytest.mark.parametrize("text", ["zeroq.t1:weights=4", "layer2.*:activations=6", "stem.conv=4", "zeroq.t1"])
def test_a_layer_is_no_setting(text):
    assert not is_setting(text)


def test_both_forms_stand_side_by_side():
    recipe = choose_recipe("aciq", True, changes=("zeroq.t1:weights=4", "zeroq.t1=200", "aciq.quota=bins"))
    assert recipe.changes == ("zeroq.t1:weights=4",)
    assert recipe.config(MixConfig).t1 == 200
    assert recipe.config(AciqConfig).quota == "bins"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zeroq.t9=1", "no hyper-parameter 't9'; did you mean"),
        ("zeroq.t1=x", "the hyper-parameter zeroq.t1 must be a whole number, not 'x'"),
        ("zeroq.start=here", "must be one of natural, uniform, gaussian"),
        ("zeroq.laws=maybe", "must be yes or no"),
        ("zeroq.t1=0", "at least 1, not 0"),
        ("aciq.percentile=20", "must lie above 50, and at 100 at most"),
        ("minmax.t1=1", "no hyper-parameters to set"),
        ("aciq.clip=mse", "no hyper-parameter 'clip'"),
        ("lsqplus.rate=0.1", "has no effect: method 'aciq'"),
        ("zeroq.t1", "is not of the form"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_way_out(text, words):
    def configs():
        recipe = choose_recipe("aciq", True, changes=(text,))
        return recipe.config(MixConfig), recipe.config(AciqConfig)

    with pytest.raises(UsageError, match=words):
        configs()


@pytest.mark.parametrize("method", PAPERS)
def test_a_protocol_differs_from_the_default_in_every_row(method):
    assert registry.methods_with_papers() == PAPERS
    plain, paper = choose_recipe(method, True), choose_recipe(method, True, protocol="paper")
    said = dict(paper.settings)
    for row in registry.find(method).paper:
        assert len(row.why) > 20
        if "." in row.name:
            assert said[row.name] == row.value
            assert row.value != value_of(row.name)
        elif row.name != "format":
            assert getattr(paper, row.name) == row.value != getattr(plain, row.name)
    assert (plain.protocol, plain.settings) == ("deploy", ())


def test_what_is_given_counts_more_than_the_paper():
    recipe = choose_recipe("aciq", True, protocol="paper", weight_clip="mse", changes=("aciq.means=inputs",))
    assert recipe.weight_clip == "mse"
    assert recipe.config(AciqConfig).means == "inputs"
    assert recipe.config(AciqConfig).prior == "laplace"


def test_configs_of_the_papers():
    zeroq = choose_recipe("zeroq", False, protocol="paper")
    distilling = zeroq.config(DistillConfig)
    assert (distilling.steps, distilling.rate, distilling.per, distilling.decay) == (500, 0.5, "image", "plateau")
    mixing = zeroq.config(MixConfig)
    assert (mixing.a, mixing.b, mixing.t1, mixing.t2, mixing.laws) == (10, 5, 200, 5, False)
    search = choose_recipe("qrater", True, protocol="paper").config(SearchConfig)
    assert (search.objective, search.base, search.corrected, search.race) == ("accuracy", False, False, False)
    training = choose_recipe("lsqplus", True, protocol="paper").config(LsqPlusConfig)
    assert (training.label_weight, training.linear, training.configuration) == (1.0, "symmetric", 4)


def test_a_text_that_is_no_setting_is_refused():
    with pytest.raises(UsageError, match=r"is not of the form METHOD\.FIELD=VALUE"):
        parse("zeroq")
    with pytest.raises(UsageError, match="has no hyper-parameter 't9'"):
        value_of("zeroq.t9")


def test_grids_with_a_shift_are_checked():
    with pytest.raises(qgraph.PlanError, match="a weight grid has a finite shift for each of its 1 scales"):
        WeightQuant(bits=4, scale=(0.1,), shift=(0.1, 0.2))


def test_distilling_sets_no_bits_of_layers(digits, tmp_path, capsys):
    out = str(tmp_path / "d.npz")
    assert main(["distill", str(digits), "-o", out, "--set", "conv:weights=4"]) == 2
    assert "is for layers, and distilling quantizes none" in capsys.readouterr().err
    with pytest.raises(UsageError, match="need at least one sample to distil, not 0"):
        distill(str(digits), count=0)
    assert main(["distill", str(digits), "-o", out, "--count", "2", "--set", "zeroq.steps=2", "--quiet"]) == 0


def test_onnxruntime_and_its_training_build_in_one_environment_are_refused(monkeypatch):
    monkeypatch.setattr(sessions, "_is_installed", lambda metadata, name: True)
    sessions.check_installed.cache_clear()
    try:
        with pytest.raises(UsageError, match=r"are installed in one environment.*environment of its own"):
            sessions.check_installed()
    finally:
        monkeypatch.undo()
        sessions.check_installed.cache_clear()
    sessions.check_installed()


def test_a_method_without_a_paper_says_who_has_one():
    with pytest.raises(UsageError, match="method 'minmax' has no protocol of a paper: protocol='paper' is for aciq, "):
        choose_recipe("minmax", True, protocol="paper")


def test_pure_aciq_leaves_weights_at_their_range_and_shifts_every_weight(digits, digits_calibration):
    options = {"weights": 4, "activations": 4, "measure": False, "method": "aciq"}
    result = qgraph.quantize(digits, digits_calibration, protocol="paper", **options)
    assert result.format == "float"
    assert any(any(layer.weight.shift) for layer in result.plan.layers)
    assert not any(layer.bias_shift for layer in result.plan.layers)
    assert qgraph.QuantPlan.from_json(result.plan.to_json()) == result.plan
    with pytest.raises(qgraph.PlanError, match="adds a fraction of a step to its weights"):
        qgraph.quantize(digits, digits_calibration, protocol="paper", format="qdq", **options)
    deployed = qgraph.quantize(
        digits, digits_calibration, protocol="paper", format="qdq", settings={"aciq.means": "inputs"}, **options
    )
    assert any(layer.bias_shift for layer in deployed.plan.layers)


@pytest.mark.filterwarnings("ignore:.*did not improve on the start")
def test_lsqplus_as_in_the_paper_has_the_same_bits_everywhere(digits, digits_calibration):
    settings = {"lsqplus.epochs": 1, "lsqplus.batch": 8, "lsqplus.shard": 8}
    trained = qgraph.finetune(
        digits, digits_calibration, limit=16, protocol="paper", settings=settings, weights=3, activations=3,
        measure=False,
    )  # fmt: skip
    assert {layer.weight.bits for layer in trained.plan.layers} == {3}
    assert all(len(layer.weight.scale) == 1 for layer in trained.plan.layers)


def test_zeroq_as_in_the_paper_takes_ranges_from_distilled_samples_alone(digits):
    settings = {"zeroq.steps": 3, "zeroq.count": 4}
    result = qgraph.quantize(digits, method="zeroq", protocol="paper", settings=settings, measure=False)
    plain = qgraph.quantize(digits, method="zeroq", settings=settings, measure=False)
    assert result.samples.count == 4
    assert not any(layer.bias_shift for layer in result.plan.layers)
    assert [a.scale for a in result.plan.activations] != [a.scale for a in plain.plan.activations]


def test_qrater_as_in_the_paper_starts_from_its_own_grids(digits, digits_calibration):
    settings = {"qrater.objective": "loss", "qrater.clips": (0.5, 1.0), "qrater.gamma_n": (0.0, 0.5)}
    options = {"weights": 4, "activations": 4, "limit": 24, "settings": settings, "protocol": "paper"}
    result = qgraph.quantize(digits, digits_calibration, method="qrater", measure=False, **options)
    found = qgraph.search(digits, digits_calibration, **options)
    for plan in (result.plan, found.plan):
        assert not plan.fold_bn
        assert any(kept.why == "first layer" for kept in plan.kept_float)
        assert all(a.symmetric for a in plan.activations)
