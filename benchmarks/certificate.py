"""How often a certificate's bound is broken: samples drawn from a population whose true drop is known.

`python -m benchmarks.certificate [--draws 50 1000] [--count 1000] [--json OUT.json]`: the population is the CIFAR-10
test set, 10,000 images; the drop of a quantized network on it is known. From each of 50, and of 1,000, samples of 1,000
images, drawn with replacement, the 95 % bound of `qgraph certify` is computed, for the drop and for the share of equal
classes; it is broken where the population is worse than the bound. At 95 %, at most 5 % should be. How often the bound
of equal classes is broken in the long run is also computed exactly, by the binomial law.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import qgraph
import qmath
from benchmarks.common import CIFAR, arguments, images, report, shared
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session

CONFIDENCE = 0.95
PLANS: dict[str, dict[str, Any]] = {
    "W8A8": {},
    "W4A8": {"weights": 4},
    "W3A8, nearest": {"weights": 3, "weight_clip": "max", "rounding": "nearest"},
}


def broken(
    before: NDArray[np.int64], after: NDArray[np.int64], labels: NDArray[np.int64], *, draws: int, count: int
) -> tuple[int, int]:
    """How many of `draws` samples give bounds, for the drop and for equal classes, that the population breaks."""
    right, still = before == labels, after == labels
    drop, same = float(right.mean() - still.mean()), float((before == after).mean())
    rng, drops, shares = np.random.default_rng(0), 0, 0
    for _ in range(draws):
        some = rng.integers(0, len(labels), count)
        lost, gained = int((right & ~still)[some].sum()), int((~right & still)[some].sum())
        drops += qmath.drop_bound(lost, gained, count, confidence=CONFIDENCE) < drop
        shares += qmath.share_bound(int((before == after)[some].sum()), count, confidence=CONFIDENCE) > same
    return drops, shares


def chance(share: float, count: int) -> float:
    """The probability that a sample gives a bound of equal classes that the population breaks."""
    hits = np.arange(count + 1)
    above = [qmath.share_bound(int(n), count, confidence=CONFIDENCE) > share for n in hits]
    return float(stats.binom.pmf(hits[above], count, share).sum())


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--draws", nargs="*", type=int, default=(50, 1000), metavar="N", help="samples from the population"
        )
        parser.add_argument("--count", type=int, default=1000, metavar="N", help="images of a sample")

    given = arguments(__doc__, add)
    source = shared("models", "cifar10_resnet20.onnx")
    pictures, labels = images("cifar10_test")
    net = load(source)
    data = qgraph.open_data({"images": pictures, "labels": labels}, net, preprocessing=CIFAR)

    def classes(model: Any) -> NDArray[np.int64]:
        session = Session(model, threads=given.threads or None)
        return np.concatenate([session.run_list(batch.feeds)[0].argmax(axis=1) for batch in data.batches(100)])

    before, rows = classes(net.ir_model), []
    calibration, _ = images("cifar10_train20k", 256)
    for name, options in PLANS.items():
        result = qgraph.quantize(source, calibration, preprocessing=CIFAR, measure=False, **options)
        after = classes(result.model)
        for draws in given.draws:
            drops, shares = broken(before, after, labels, draws=draws, count=given.count)
            rows.append(
                {
                    "file": name,
                    "true drop, points": 100 * float((before == labels).mean() - (after == labels).mean()),
                    "same class, %": 100 * float((before == after).mean()),
                    "samples": draws,
                    "bounds of the drop broken": drops,
                    "bounds of equal classes broken": shares,
                    "expected of these": draws * chance(float((before == after).mean()), given.count),
                }
            )
    title = f"Bounds at {CONFIDENCE:.0%} from {given.count:,} images, ResNet-20"
    report(title, rows, json_path=given.json)


if __name__ == "__main__":
    main()
