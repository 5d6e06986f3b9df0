"""LSQ+: Tables 2 to 6, by short trainings with other images for every seed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import qgraph
from benchmarks.common import CIFAR, images
from benchmarks.papers.cells import Cells, Figures, kept, over_seeds
from benchmarks.papers.networks import network
from benchmarks.papers.table import Table
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.onnxfile.load import load

SEEDS = 3
IMAGES, EPOCHS = 4_000, 3
CONFIGURATIONS = {1: "unsigned", 2: "signed", 3: "signed, offset", 4: "unsigned, offset"}
OFFSETS: dict[str, dict[str, Any]] = {
    "beta = 0": {"configuration": 1},
    "beta = minimum of x": {"configuration": 4, "offsets": "minimum"},
    "learned beta": {"configuration": 4},
}
_BITS = (4, 3, 2)
_WIDTHS = tuple(f"W{bits}A{bits}" for bits in _BITS)
_SWISH, _RELU = "silu_se", "resnet20"
_TABLE_2 = ((71.9, 67.5, 43.5), (68.8, 54.8, 23.7), (73.5, 69.9, 49.1), (73.8, 69.3, 48.7))
_TABLE_3 = ((70.4, 64.3, 39.9), (67.2, 62.1, 23.4), (71.6, 66.7, 42.5), (71.7, 66.1, 42.8))
_TABLE_4 = ((70.7, 69.4, 66.7), (69.2, 66.1, 64.7), (70.7, 69.4, 66.7), (70.8, 69.3, 66.8))
_TABLE_5 = {
    "minmax": ("71.3 ± 2.2", "43.8 ± 4.7"),
    "lsq": ("72.0 ± 1.6", "44.4 ± 2.9"),
    "lsqplus": ("73.0 ± 0.9", "46.8 ± 1.9"),
}
_TABLE_6 = (71.9, 72.5, 73.8)
_SHORT = (
    f"trainings of {EPOCHS} epochs on {IMAGES:,} images, other ones for every seed; the written file on 10,000 test "
    "images, ± half the distance from least to largest. The paper trains on ImageNet to the end."
)
_NOTE = f"Here: a SiLU network with squeeze-and-excite for CIFAR-10 (88.39 in float), {_SHORT}"


def tables(cells: Cells) -> Iterator[Table]:
    yield Table(
        number="Tables 2 and 3",
        title="configurations on Swish: EfficientNet-B0, MixNet-S",
        note=_NOTE,
        rows=lambda: [_on_swish(cells, number) for number in CONFIGURATIONS],
    )
    yield Table(
        number="Table 4",
        title="ReLU: ResNet-18 (70.1 in float)",
        note=f"Here: ResNet-20 and ResNet-32 of CIFAR-10 (91.73 and 92.63 in float); short: {_SHORT} By default: "
        f"20,000 labelled images, one seed.",
        rows=lambda: _on_relu(cells),
    )
    yield Table(
        number="Table 5",
        title="initialisations, configuration 4",
        note=f"{_NOTE} W2A2 was measured by an earlier version, all seeds on the same images.",
        rows=lambda: [_started(cells, name) for name in _TABLE_5],
    )
    yield Table(
        number="Table 6",
        title="fixed and learned offsets at W4A4",
        note=_NOTE,
        rows=lambda: [
            {"offset": name, "paper": printed, "here": _trained(cells, _SWISH, 4, **settings)}
            for (name, settings), printed in zip(OFFSETS.items(), _TABLE_6, strict=True)
        ],
    )


def _on_swish(cells: Cells, number: int) -> Figures:
    row: Figures = {"configuration": f"{number}: {CONFIGURATIONS[number]}"}
    for bits, *printed in zip(_BITS, _TABLE_2[number - 1], _TABLE_3[number - 1], strict=True):
        row[f"paper W{bits}A{bits}"] = " / ".join(map(str, printed))
        row[f"here W{bits}A{bits}"] = _trained(cells, _SWISH, bits, configuration=number)
    return row


def _on_relu(cells: Cells) -> list[Figures]:
    rows: list[Figures] = []
    for number, name in CONFIGURATIONS.items():
        printed = dict(zip(_WIDTHS, _TABLE_4[number - 1], strict=True))
        rows.append({"network": "paper: ResNet-18", "configuration": f"{number}: {name}"} | printed)
    for number, name in CONFIGURATIONS.items():
        found = {f"W{bits}A{bits}": _trained(cells, _RELU, bits, configuration=number) for bits in _BITS}
        rows.append({"network": "resnet20, short", "configuration": f"{number}: {name}"} | found)
    long = {(row["network"], row["bits"]): row["top1"] for row in kept("finetune_reach")}
    for name in ("resnet20", "resnet32"):
        rows.append({"network": name, "configuration": "by default"} | {w: f"{long[name, w]:.2f}" for w in _WIDTHS})
    return rows


def _started(cells: Cells, name: str) -> Figures:
    four, two = _TABLE_5[name]
    before = cells(f"{_SWISH} W2A2 initialisation {name}, 5 seeds", dict, possible=False)
    return {
        "initialisation": name,
        "paper W4A4": four,
        "here W4A4": _trained(cells, _SWISH, 4, configuration=4, initialisation=name),
        "paper W2A2": two,
        "here W2A2": "-" if before is None else f"{before['top1']:.2f} ± {before['half the range']:.2f} (5 seeds)",
    }


def _trained(cells: Cells, name: str, bits: int, **settings: Any) -> str:
    """The accuracy after training with these settings of `LsqPlusConfig`, over seeds."""
    differing = {key: value for key, value in settings.items() if value not in ("lsqplus", "learned")}
    label = " ".join(f"{key} {value}" for key, value in differing.items())
    measured = [
        cells(f"{name} W{bits}A{bits} {label} seed {seed}", partial(_train, name, bits, seed, settings))
        for seed in range(SEEDS)
    ]
    return over_seeds(measured)


def _train(name: str, bits: int, seed: int, settings: dict[str, Any]) -> Figures:
    """Train on images of the seed, write, and measure the file."""
    stop = IMAGES * (seed + 1)
    pictures, labels = (part[stop - IMAGES :] for part in images("cifar10_train20k", stop))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = qgraph.finetune(
            network(name).path,
            {"images": pictures, "labels": labels},
            config=LsqPlusConfig(epochs=EPOCHS, holdout=0.05, **settings),
            weights=bits,
            activations=bits,
            preprocessing=CIFAR,
            seed=seed,
            measure=False,
        )
    return network(name).top1(load(made.model))
