"""ACIQ: Tables 1 to 3 and Table 1 of the supplement, simulated as in the paper.

Channels have steps of their own for weights and activations, first and last layers have 8 bits, and the ingredients are
those of `qgraph compare --ablation aciq`: bias correction is the paper's (Eq. 13), and the quota is one of bins.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import qgraph
from benchmarks.aciq import in_closed_form
from benchmarks.common import CIFAR
from benchmarks.papers.cells import Cells, Figures, percent
from benchmarks.papers.networks import Network, network
from benchmarks.papers.table import Table
from qgraph.assess.ablation import combined
from qgraph.assess.evaluate import evaluate
from qgraph.methods.aciq.clip import clip_activations
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan
from qgraph.plan.request import choose_recipe

NETWORKS = ("resnet20", "mobilenetv2")
LIMIT = 1_000  # test images of CIFAR-10; all photographs
NOTE = (
    "CIFAR-10's ResNet-20 stands for the paper's ResNets (1,000 test images), MobileNetV2 is judged on 300 "
    "photographs; ± is the 95 % interval of the image count. Calibration: 256 images (MobileNetV2: 128)."
)
_OFF = (False, False, False, False)  # clipping, bias correction, weight bits, activation bits
_PARTS = (  # heading, weights, activations, rows: name, ingredients, ResNet-18 and ResNet-50 in the paper
    ("8W4A", (8, 4), (
        ("baseline", _OFF, "61.5", "68.3"),
        ("ACIQ", (True, False, False, False), "66.6", "71.8"),
        ("bits per channel", (False, False, False, True), "65.0", "71.3"),
        ("ACIQ + bits per channel", (True, False, False, True), "68.0", "73.6"),
    )),
    ("4W8A", (4, 8), (
        ("baseline", _OFF, "59.7", "72.5"),
        ("bias correction", (False, True, False, False), "67.4", "74.8"),
        ("bits per channel", (False, False, True, False), "66.7", "75.0"),
        ("bias correction + bits per channel", (False, True, True, False), "68.3", "75.3"),
    )),
    ("4W4A", (4, 4), (
        ("baseline", _OFF, "51.6", "62.0"),
        ("all", (True, True, True, True), "67.0", "73.8"),
    )),
)  # fmt: skip
_OF_3_BITS = (
    ("8W3A", (8, 3), (
        ("baseline", _OFF, "23.4", "5.6"),
        ("ACIQ", (True, False, False, False), "57.8", "60.8"),
        ("bits per channel", (False, False, False, True), "48.7", "16.2"),
    )),
    ("3W8A", (3, 8), (
        ("baseline", _OFF, "3.8", "28.6"),
        ("bias correction", (False, True, False, False), "43.5", "67.4"),
        ("bits per channel", (False, False, True, False), "44.0", "66.6"),
    )),
)  # fmt: skip
_CLIPS = (("naive", "max", {}, "53.2", "52.7"), ("KLD", "kl", {}, "65.06", "70.8"))
_CLIPS += (("ACIQ, closed form from mean |x|", "closed form", {}, "65.8", "71.45"),)
_CLIPS += (("ACIQ, Laplace alone", "aciq", {"family": "laplace"}, "-", "-"),)
_CLIPS += (("ACIQ, better of two laws", "aciq", {"family": None}, "-", "-"),)
_CLIPS += (("here by default", "aciq", {}, "-", "-"), ("least squared error", "mse", {}, "-", "-"))
_RESNET101 = {  # Table 3: ResNet-101 at 2, 3, 4, 5 bits, in the order of `itertools.product`
    (False, False, False, False): (0.1, 0.5, 61.8, 74.9),
    (False, True, False, False): (0.2, 0.9, 63.7, 75.3),
    (False, False, True, False): (0.1, 1.3, 63.0, 74.9),
    (False, True, True, False): (0.1, 1.3, 65.5, 75.3),
    (False, False, False, True): (0.1, 31.7, 70.9, 74.9),
    (False, True, False, True): (0.4, 53.7, 73.2, 75.3),
    (False, False, True, True): (0.2, 56.2, 70.9, 74.9),
    (False, True, True, True): (0.6, 58.0, 72.4, 75.4),
    (True, False, False, False): (0.0, 23.3, 68.2, 75.0),
    (True, True, False, False): (0.3, 47.7, 71.0, 75.6),
    (True, False, True, False): (0.2, 53.7, 71.1, 75.0),
    (True, True, True, False): (0.5, 55.4, 72.2, 75.5),
    (True, False, False, True): (0.0, 41.7, 72.1, 75.2),
    (True, True, False, True): (0.5, 64.7, 74.4, 75.6),
    (True, False, True, True): (0.4, 66.6, 74.8, 75.2),
    (True, True, True, True): (4.6, 69.0, 75.4, 75.5),
}
_QUOTAS = (
    ("equal bits", "none", "bits"),
    ("a quota of bins: the 2/3-power rule", "weights", "bins"),
    ("a quota of bits: the memory", "weights", "bits"),
)
_SHORT = ("clip", "bias", "bits W", "bits A")


def tables(cells: Cells) -> Iterator[Table]:
    yield Table(number="Table 1", title="the ingredients at 4 bits", note=NOTE, rows=lambda: _parts(cells, _PARTS))
    yield Table(
        number="Table 2 (supplement)", title="the same at 3 bits", note=NOTE, rows=lambda: _parts(cells, _OF_3_BITS)
    )
    yield Table(
        number="Table 1 (supplement)",
        title="one clip for each tensor at 8W4A",
        note=f"{NOTE} Milliseconds are those of all clips of ResNet-20, from histograms.",
        rows=lambda: [_clip_row(cells, *row) for row in _CLIPS],
    )
    yield Table(
        number="Eq. 10",
        title="what the channels of weights share: W4A8, deployed",
        note="Not in the paper, whose quota is one of bins. Weights on grids of least squared error, biases corrected "
        f"as by default; {LIMIT:,} test images, and the SQNR of the logits on them.",
        rows=lambda: [_quota(cells, *row) for row in _QUOTAS],
    )
    yield Table(
        number="Table 3 (supplement)",
        title="all combinations, weights and activations of equal bits",
        note="The paper's column is ResNet-101; here is ResNet-20 on 1,000 test images of CIFAR-10.",
        rows=lambda: [_combination(cells, used) for used in itertools.product((False, True), repeat=4)],
    )


def _quota(cells: Cells, title: str, allocate: str, quota: str) -> Figures:
    """Weights of 4 bits whose channels share a quota, in the file to deploy."""

    def measure(name: str) -> Figures:
        case, settings = network(name), {"aciq.quota": quota}
        options: dict[str, Any] = {"weights": 4, "activations": 8, "settings": settings, "allocate_bits": allocate}
        options["rounding"] = "nearest"
        result = qgraph.quantize(case.net.ir_model, case.data(), method="aciq", measure=False, **options)
        found = evaluate(result.model, case.test(LIMIT), against=case.net, preprocessing=CIFAR)
        size = sum(layer.weight_bytes for layer in result.layers)
        return {"top1": float(found.top1 or 0.0), "images": found.count, "bytes": size, "db": found.sqnr_db}

    row: Figures = {"channels of weights": title}
    for name in ("resnet20", "relu6_dw"):
        found = cells(f"{name} quota {allocate} {quota} {LIMIT}", lambda name=name: measure(name))
        row[name] = percent(found)
        row[f"{name}, dB"] = None if found is None else round(found["db"], 2)
        row[f"{name}, bytes"] = None if found is None else found["bytes"]
    return row


def _measured(cells: Cells, name: str, used: tuple[bool, ...], bits: tuple[int, int], limit: int) -> Figures | None:
    def measure() -> Figures:
        case = network(name)
        options: dict[str, Any] = {"weights": bits[0], "activations": bits[1], "format": "float"}
        return case.worth(combined(case.net, case.observed, used, **options), limit)

    ingredients = "".join("01"[on] for on in used)
    return cells(f"{name} W{bits[0]}A{bits[1]} {ingredients} {limit}", measure, possible=network(name).there)


def _float(cells: Cells, name: str, limit: int) -> Figures | None:
    case = network(name)
    return cells(f"{name} float {limit}", lambda: case.top1(case.net, limit), possible=case.there)


def _parts(cells: Cells, parts: Any) -> list[Figures]:
    rows: list[Figures] = []
    for heading, bits, entries in parts:
        for name, used, resnet18, resnet50 in entries:
            row = {"bits": heading, "method": name, "paper: ResNet-18": resnet18, "paper: ResNet-50": resnet50}
            rows.append(row | {n: percent(_measured(cells, n, used, bits, LIMIT)) for n in NETWORKS})
    row = {"bits": "float", "method": "-", "paper: ResNet-18": "69.7", "paper: ResNet-50": "76.1"}
    return [*rows, row | {n: percent(_float(cells, n, LIMIT)) for n in NETWORKS}]


def _clip_row(cells: Cells, name: str, method: str, options: Any, resnet18: str, resnet50: str) -> Figures:
    row = {"clip": name, "paper: ResNet-18": resnet18, "paper: ResNet-50": resnet50}
    seconds = "-"
    for one in NETWORKS:
        found = cells(f"{one} clip {name} {LIMIT}", lambda one=one: _clipped(network(one), method, options))
        row[one] = percent(found)
        seconds = f"{1e3 * found['seconds']:.1f}" if found and one == "resnet20" else seconds
    return row | {"ms": seconds}


def _clipped(case: Network, method: str, options: Any) -> Figures:
    plan = initial_plan(case.view, choose_recipe("minmax", True, weights=8, activations=4), case.observed)

    def clipped() -> QuantPlan:
        if method == "closed form":
            return in_closed_form(plan, case.observed, bits=4)
        return clip_activations(plan, case.view, case.observed, method=method, **options)

    clipped()  # compiles and caches
    start = time.perf_counter()
    found = clipped()
    seconds = time.perf_counter() - start
    return case.worth(found, LIMIT) | {"seconds": seconds}


def _combination(cells: Cells, used: tuple[bool, ...]) -> Figures:
    row: Figures = {"ingredients": " + ".join(n for n, on in zip(_SHORT, used, strict=True) if on) or "naive"}
    for bits, printed in zip((2, 3, 4, 5), _RESNET101[used], strict=True):
        row[f"paper, {bits} bits"] = printed
        found = _measured(cells, "resnet20", used, (bits, bits), LIMIT)
        row[f"resnet20, {bits}"] = "-" if found is None else f"{found['top1']:.1f}"
    return row
