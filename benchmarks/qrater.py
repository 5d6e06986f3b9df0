"""Q-Rater's Tables 1, 2 and 3 for ResNet-32 and a depthwise network: ingredients alone and together, beside the paper.

Every cell is a search whose choices are kept in benchmarks/results/qrater; an existing cell is replayed, and an
interrupted search continues. Candidates are chosen on training images (`images` says how many) and measured on test
images; `ours` is compared with the better of the paper's `all` and `bo`. The paper searches by accuracy on all training
images; all cells here use the distance of the logits from the float network's (`--objective`), with races except in
`all, no races`.
"""

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import CIFAR, arguments, images, report, shared
from qgraph.assess.evaluate import evaluate
from qgraph.cli.console import progress
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.protocol import paper_plan
from qgraph.methods.qrater.search import search as run_search
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.plan import QuantPlan
from qgraph.running.executor import open_executor
from qgraph.running.files import write_atomically
from qgraph.running.store import FILE
from qgraph.samples.dataset import open_data

IMAGES, IMAGES_OURS = 256, 2048
RESULTS = Path(__file__).parent / "results"
BASELINES = ("mse", "aciq", "kl")
AS_WRITTEN = SearchConfig(base=False, corrected=False, first=32)
IN_TABLES: Mapping[str, SearchConfig] = {
    "round": replace(AS_WRITTEN, ingredients=("round",)),
    "clip": replace(AS_WRITTEN, ingredients=("clip",)),
    "bias": replace(AS_WRITTEN, ingredients=("bias",)),
    "round+clip": replace(AS_WRITTEN, ingredients=("clip", "round")),
    "all": AS_WRITTEN,
    "bo": replace(AS_WRITTEN, search="bo"),
    "1st: round": replace(AS_WRITTEN, ingredients=("round",), gamma_s=()),
    "1st: round+clip": replace(AS_WRITTEN, ingredients=("clip", "round"), gamma_s=()),
    "1st: all": replace(AS_WRITTEN, gamma_s=()),
}
CELLS = {**IN_TABLES, "ours": SearchConfig(), "all, no races": replace(AS_WRITTEN, race=False)}
IN_PAPER = (*BASELINES, *IN_TABLES)
PAPER = {  # ResNet-32, Tables 1 to 3: bits -> cell -> top-1
    bits: dict(zip(IN_PAPER, figures, strict=True))
    for bits, figures in (
        (5, (90.64, 75.68, 90.45, 91.70, 91.68, 91.64, 91.93, 91.74, 91.84, 91.54, 91.73, 91.77)),
        (4, (84.46, 24.57, 71.32, 89.03, 89.60, 88.47, 89.71, 90.24, 90.15, 89.02, 89.02, 89.69)),
        (3, (16.86, 11.23, 58.48, 75.74, 72.61, 67.63, 77.35, 79.69, 79.71, 74.56, 74.56, 76.76)),
    )
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One network under the paper's protocol, with training images to search on and test images to measure on."""

    name: str
    net: Model
    seed: int
    options: argparse.Namespace

    def samples(self, count: int) -> Any:
        first = self.seed * count
        pictures, labels = images("cifar10_train20k", first + count)
        return open_data({"input": pictures[first:], "labels": labels[first:]}, self.net, preprocessing=CIFAR)

    def count(self, name: str) -> int:
        return int(self.options.samples or (IMAGES if name in CELLS and name != "ours" else IMAGES_OURS))

    def start(self, bits: int, clip: str, count: int) -> QuantPlan:
        observed = observe(self.net, self.samples(count))
        return paper_plan(GraphView(self.net), observed, weights=bits, activations=bits, clip=clip)

    def accuracy(self, plan: QuantPlan) -> float:
        pictures, labels = images("cifar10_test", self.options.test)
        model = Model(ir_model=simulate(self.net, plan), source=self.name, nbytes=0)
        found = evaluate(model, {"input": pictures, "labels": labels}, preprocessing=CIFAR).top1
        return float(found or 0.0)

    def cell(self, bits: int, name: str) -> dict[str, Any]:
        """One figure of a table, from a clip alone or from a search."""
        printed = PAPER.get(bits, {}) if self.name == "resnet32" else {}
        paper = max(printed["all"], printed["bo"]) if printed and name == "ours" else printed.get(name)
        row: dict[str, Any] = {"model": self.name, "W/A": f"{bits}/{bits}", "cell": name}
        row |= {"images": self.count(name), "seed": self.seed, "top-1": None, "paper": paper}
        row |= {"fewer image-forwards": None, "evaluations": None, "seconds": None}
        if self.options.kept and name in CELLS and not packed(self.label(bits, name)).exists():
            return row
        cost: dict[str, Any] = {}
        start = time.perf_counter()
        if name in BASELINES:
            plan = self.start(bits, name, self.count(name))
        else:
            plan, cost = self.search(bits, name)
        seconds = round(time.perf_counter() - start, 1)
        return row | {"top-1": self.accuracy(plan)} | cost | {"seconds": seconds}

    def label(self, bits: int, name: str) -> str:
        """The name of the journal of a cell."""
        cell = re.sub(r"\W+", "_", name)
        by = "" if self.options.objective == "mse" else f"_{self.options.objective}"
        return f"{self.name}_{bits}_{cell}{by}_{self.count(name)}_{self.seed}"

    def search(self, bits: int, name: str) -> tuple[QuantPlan, dict[str, Any]]:
        """The plan of a cell, from its journal as far as possible."""
        config = replace(CELLS[name], objective=self.options.objective, seed=self.seed)
        with journal(self.label(bits, name)) as folder, open_executor(self.options.executor) as executor:
            base, samples = self.start(bits, "mse", self.count(name)), self.samples(self.count(name))
            shown = progress(False)
            found = run_search(base, self.net, samples, executor=executor, config=config, folder=folder, progress=shown)
        if name == "ours" and self.seed == 0 and self.options.samples is None:
            target = RESULTS / f"qrater_{self.name}_{bits}.plan.json"
            write_atomically(target, found.plan.to_json().encode())
        saving = round(found.cost.saving(found.samples), 1)
        return found.plan, {"fewer image-forwards": saving, "evaluations": found.cost.run}


def compact(path: Path) -> None:
    """Reduce a finished search to its choices, in one file: enough to replay it."""
    file = sqlite3.connect(path, isolation_level=None)
    for table in ("pieces", "arrays"):
        file.execute(f"DELETE FROM {table} WHERE key LIKE 'scores %'")
    file.execute("PRAGMA journal_mode = DELETE")
    file.execute("VACUUM")
    file.close()


def packed(label: str) -> Path:
    """The file with the journal of a finished cell."""
    return RESULTS / "qrater" / f"{label}.sqlite.gz"


@contextmanager
def journal(label: str) -> Iterator[Path]:
    """A folder with the journal of a cell, unpacked from the results and packed again when the search is done."""
    kept, folder = packed(label), RESULTS / "qrater" / label
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    if kept.exists() and not file.exists():
        file.write_bytes(gzip.decompress(kept.read_bytes()))
    yield folder
    if not kept.exists():
        compact(file)
        write_atomically(kept, gzip.compress(file.read_bytes(), mtime=0))
    shutil.rmtree(folder)


def options(parser: argparse.ArgumentParser) -> None:
    known = (*BASELINES, *CELLS)
    parser.add_argument("--model", default="resnet32", help="resnet32, resnet20 or relu6_dw")
    parser.add_argument("--bits", type=int, nargs="+", default=[5, 4, 3])
    parser.add_argument("--cells", nargs="+", default=[*IN_PAPER, "ours"], choices=known)
    parser.add_argument(
        "--samples", type=int, help=f"training images to choose on (default: {IMAGES_OURS} for ours, else {IMAGES})"
    )
    parser.add_argument("--kept", action="store_true", help="only cells with an existing journal; others stay empty")
    parser.add_argument("--test", type=int, default=10_000, help="test images to measure on")
    parser.add_argument("--objective", default="mse", help="task, accuracy, loss, kl or mse")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the choice and order of images")
    parser.add_argument("--executor", default="local")


def main() -> None:
    given = arguments(__doc__, options)
    net = normalise(load(shared("models", f"cifar10_{given.model}.onnx")), fold_bn=False)
    benches = [Bench(name=given.model, net=net, seed=seed, options=given) for seed in given.seeds]
    rows = [bench.cell(bits, name) for bits in given.bits for name in given.cells for bench in benches]
    report(f"Q-Rater, {given.model}: signed symmetric grids per layer, first layer float", rows, json_path=given.json)


if __name__ == "__main__":
    main()
