"""The four papers in one chain, without one real image: distil, clip, round, train, pack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import qgraph
from qgraph.assess.evaluate import evaluate
from qgraph.lowering.lower import lower
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.zeroq.distill import DistillConfig, distill
from qgraph.onnxfile.load import load


def test_distilled_clipped_searched_trained_and_packed(digits, digits_calibration, digits_test, tmp_path) -> None:
    samples = distill(digits, count=256, config=DistillConfig(steps=40, batch=64)).inputs
    bits = {"weights": 2, "activations": 2, "measure": False}
    searched = qgraph.quantize(digits, samples, method="aciq", rounding="qrater", limit=32, **bits)
    assert any(layer.weight.rounding is not None for layer in searched.plan.layers)
    config = LsqPlusConfig(initialisation="plan", batch=32, holdout=0.2, epochs=30)
    trained = qgraph.finetune(digits, samples, start=searched.plan, config=config, measure=False)
    assert trained.epochs[trained.best_epoch].distance < 0.9 * trained.epochs[0].distance

    path = tmp_path / "packed.onnx"
    assert trained.save(path) < 0.3 * Path(digits).stat().st_size
    images = _together(digits_calibration, digits_test)
    floats, start, end, packed = (
        evaluate(load(m), images, against=digits)
        for m in (lower(trained.net, trained.plan, format="float"), searched.model, trained.model, path)
    )
    assert packed == end
    assert packed.top1 == floats.top1
    assert packed.kl < 0.85 * start.kl


def _together(*paths: Path) -> dict[str, np.ndarray]:
    loaded = [np.load(path) for path in paths]
    return {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}
