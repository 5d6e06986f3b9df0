"""Fine-tuning: gradients of the whole step, reproducibility, resuming, and what it recovers on the demo network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.data import Dataset, open_data
from qgraph.errors import DataError, ModelError, QGraphError, UsageError
from qgraph.evaluation import evaluate
from qgraph.gradient import GradientError
from qgraph.graph import GraphView
from qgraph.initial import initial_plan
from qgraph.lsqplus import LsqPlusConfig, initialise, train
from qgraph.lsqplus.absorb import absorb
from qgraph.lsqplus.configurations import configuration_of
from qgraph.lsqplus.feed import augment, open_feed
from qgraph.lsqplus.loss import targets_of
from qgraph.lsqplus.step import TrainingStep, training_graph
from qgraph.model import Model, load
from qgraph.observe import observe
from qgraph.pipeline import prepare
from qgraph.plan import QuantPlan
from qgraph.recipe import Recipe
from qgraph.runtime import Session
from qgraph.simulate import simulate

QUICK = LsqPlusConfig(epochs=2, batch=16, shard=8, holdout=0.25, calibration=32)


@pytest.fixture(scope="module")
def net(digits: Path) -> Model:
    return prepare(digits)


def _data(net: Model, digits_calibration: Path, count: int) -> Dataset:
    return open_data(digits_calibration, net, limit=count)


def _plan(net: Model, data: Dataset, bits: int, config: LsqPlusConfig) -> QuantPlan:
    view, observed = GraphView(net), observe(net, data)
    recipe = Recipe.choose("lsqplus", True, weights=bits, activations=bits)
    return initialise(initial_plan(view, recipe, observed), view, observed, config=config)


def test_demo_recovers_what_post_training_loses(digits, digits_calibration, digits_test) -> None:
    """W2A2 per channel: the grids that training starts from, against the trained ones, on the test images."""
    top1 = {}
    for name, epochs in (("before", 1), ("after", 8)):
        rate = 1e-9 if name == "before" else 5e-3
        config = LsqPlusConfig(epochs=epochs, rate=rate, scale_rate=rate)
        found = _finetuned(digits, digits_calibration, name, config)
        top1[name] = evaluate(_as_model(found.model), digits_test).top1
    original = evaluate(load(digits), digits_test).top1
    assert original - top1["before"] > 5.0
    assert original - top1["after"] < 0.1 * (original - top1["before"])


def _finetuned(digits, digits_calibration, name, config):
    if name == "before":
        with pytest.warns(UserWarning, match="did not improve"):
            return qgraph.finetune(digits, digits_calibration, weights=2, activations=2, config=config)
    return qgraph.finetune(digits, digits_calibration, weights=2, activations=2, config=config)


def _as_model(model: ir.Model) -> Model:
    return load(ir.to_proto(model))
