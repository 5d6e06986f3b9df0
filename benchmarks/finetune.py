"""LSQ+ on CIFAR-10: what training recovers, with labels and without any image.

    python -m benchmarks.finetune reach     W4A4, W3A3 and W2A2 of the two ResNets, with labelled training images
    python -m benchmarks.finetune free      without any image, as `qgraph finetune MODEL` does it; seeds 0 to 2

First and last layers have 8 bits. Accuracy is that of the exported integer file on the 10,000 test images; nothing is
chosen on them. Every finished run is written to a journal, so that an interrupted benchmark can continue; the runs
themselves continue from their checkpoints.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any

import qgraph
from benchmarks.common import CIFAR, images, report, shared
from qgraph.assess.evaluate import evaluate
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.onnxfile.load import load

FLOAT = {"resnet20": 91.73, "resnet32": 92.63}
TARGETS = {4: 0.4, 3: 1.2, 2: 4.5}
FREE_TARGETS = {4: 0.7, 3: 6.0}
SEEDS = 3
PHOTOGRAPHS = LsqPlusConfig(augment=True, holdout=0.05)  # with the default epochs and rates


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    `images` counts labelled training images; with 0, samples are distilled.
    """

    network: str
    bits: int
    config: LsqPlusConfig
    seed: int = 0
    images: int = 20_000

    @property
    def key(self) -> str:
        """A name for the training."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def data(self) -> Any:
        if not self.images:
            return None
        return dict(zip(("images", "labels"), images("cifar10_train20k", self.images), strict=True))

    def train(self, folder: Path) -> dict[str, Any]:
        """Train, export, and measure the exported file and the simulation beside it."""
        start, busy = time.perf_counter(), time.process_time()
        result = qgraph.finetune(
            shared("models", f"cifar10_{self.network}.onnx"),
            self.data(),
            config=self.config,
            weights=self.bits,
            activations=self.bits,
            preprocessing=CIFAR if self.images else None,
            seed=self.seed,
            resume=folder,
        )
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        test = dict(zip(("images", "labels"), images("cifar10_test"), strict=True))
        top1 = {
            name: evaluate(
                load(qgraph.lowering.lower.lower(result.net, result.plan, format=name)), test, preprocessing=CIFAR
            ).top1
            for name in ("qdq", "float")
        }
        return {
            "top1": top1["qdq"],
            "simulated": top1["float"],
            "seconds": seconds,
            "busy": busy,
            "epochs": [asdict(epoch) for epoch in result.epochs],
        }


@dataclass(frozen=True)
class Journal:
    """Finished runs, one per line, and the checkpoints of unfinished ones."""

    folder: Path
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Journal:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "journal.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return cls(folder, {entry["key"]: entry for entry in map(json.loads, lines)})

    def result(self, run: Run) -> dict[str, Any]:
        """The result of a run, from the journal if it is there."""
        if run.key not in self.done:
            print(f"training {run.network} W{run.bits}A{run.bits}, seed {run.seed}, {run.config}", flush=True)
            entry = {"key": run.key, "run": asdict(run), **run.train(self.folder / run.key)}
            with (self.folder / "journal.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self.done[run.key] = entry
        return self.done[run.key]


def reach(journal: Journal, given: argparse.Namespace) -> list[dict[str, Any]]:
    networks = given.networks or ["resnet20", "resnet32"]
    runs = [Run(network=n, bits=b, config=PHOTOGRAPHS) for n in networks for b in given.bits or (4, 3, 2)]
    return [_reached(run, journal.result(run), TARGETS) for run in runs]


def free(journal: Journal, given: argparse.Namespace) -> list[dict[str, Any]]:
    networks = given.networks or ["resnet20", "resnet32"]
    rows = []
    for name, bits in ((n, b) for n in networks for b in given.bits or (4, 3)):
        runs = [Run(network=name, bits=bits, config=LsqPlusConfig(), seed=s, images=0) for s in range(SEEDS)]
        found = [_reached(run, journal.result(run), FREE_TARGETS) for run in runs]
        losses, minutes = [row["loss"] for row in found], [row["CPU minutes"] for row in found]
        rows.append(found[0] | {"top1": FLOAT[name] - mean(losses), "loss": mean(losses), "worst": max(losses)})
        rows[-1] |= {"simulated": mean(r["simulated"] for r in found), "CPU minutes": mean(minutes), "seeds": SEEDS}
        del rows[-1]["minutes"]
    return rows


def _reached(run: Run, found: dict[str, Any], targets: dict[int, float]) -> dict[str, Any]:
    return {
        "network": run.network,
        "bits": f"W{run.bits}A{run.bits}",
        "float": FLOAT[run.network],
        "top1": found["top1"],
        "loss": FLOAT[run.network] - found["top1"],
        "at most": targets[run.bits],
        "simulated": found["simulated"],
        "minutes": found["seconds"] / 60,
        "CPU minutes": found["busy"] / 60 if found.get("busy") else None,
    }


TABLES: dict[str, tuple[str, Callable[[Journal, argparse.Namespace], Sequence[dict[str, Any]]]]] = {
    "reach": ("Top-1 after training with labels, 20,000 images", reach),
    "free": ("Top-1 after training without any image, means of 3 seeds", free),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--networks", nargs="+", choices=["resnet20", "resnet32"])
    parser.add_argument("--bits", nargs="+", type=int, choices=[2, 3, 4])
    parser.add_argument("--journal", type=Path, default=Path("build/finetune"), help="folder of finished runs")
    parser.add_argument("--json", metavar="FILE")
    given = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    title, make = TABLES[given.table]
    report(title, make(Journal.open(given.journal), given), json_path=given.json)


if __name__ == "__main__":
    main()
