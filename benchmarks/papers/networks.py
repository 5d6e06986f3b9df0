"""The networks on which the papers' tables are measured here, and their images.

CIFAR-10's ResNets stand for the papers' ResNets, and MobileNetV2 with torchvision's weights is one of the papers' own.
It is judged on 300 labelled photographs, in the folder of `benchmarks.real` ($QGRAPH_REAL).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import CIFAR, images, shared
from qgraph.assess.evaluate import evaluate
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import prepare
from qgraph.plan.plan import QuantPlan
from qgraph.samples.dataset import Dataset, open_data

CALIBRATING = 256


@dataclass(frozen=True)
class Network:
    """One network: images to calibrate on, and labelled ones to judge by."""

    name: str

    @property
    def folder(self) -> Path | None:
        """Where MobileNetV2 and its photographs are; None for networks of CIFAR-10."""
        return Path(os.environ.get("QGRAPH_REAL", "real")) if self.name == "mobilenetv2" else None

    @property
    def path(self) -> Path:
        return (
            shared("models", f"cifar10_{self.name}.onnx") if self.folder is None else self.folder / f"{self.name}.onnx"
        )

    @property
    def there(self) -> bool:
        return self.folder is None or self.path.exists()

    @cached_property
    def net(self) -> Model:
        return prepare(load(self.path))

    @property
    def view(self) -> GraphView:
        return GraphView(self.net)

    def calibrating(self, *, seed: int = 0) -> Any:
        """Images to calibrate on; other ones for every seed."""
        if self.folder is None:
            return images("cifar10_train20k", CALIBRATING * (seed + 1))[0][CALIBRATING * seed :]
        with np.load(self.folder / "imagenet.calib.npz") as archive:
            order = np.random.default_rng(seed).permutation(len(archive["images"]))
            return archive["images"][order[:128]]

    def test(self, limit: int | None) -> Mapping[str, Any]:
        if self.folder is None:
            return dict(zip(("images", "labels"), images("cifar10_test", limit), strict=True))
        with np.load(self.folder / "imagenet.eval.npz") as archive:
            return {name: archive[name][:limit] for name in ("images", "labels")}

    def data(self) -> Dataset:
        return open_data(self.calibrating(), self.net, preprocessing=CIFAR)

    @cached_property
    def observed(self) -> Observations:
        return observe(self.net, self.data())

    def top1(self, model: Model, limit: int | None = None) -> dict[str, Any]:
        """The accuracy of a model, and on how many images."""
        test = self.test(limit)
        found = evaluate(model, test, preprocessing=CIFAR).top1
        return {"top1": float(found or 0.0), "images": len(test["labels"])}

    def worth(self, plan: QuantPlan, limit: int | None = None) -> dict[str, Any]:
        return self.top1(Model(ir_model=lower(self.net, plan, format="float"), source=self.name, nbytes=0), limit)


@cache
def network(name: str) -> Network:
    return Network(name)
