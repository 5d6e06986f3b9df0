"""How close qmath's kernels come to the bandwidth of memory: python -m benchmarks.kernels

Arrays of 64 MiB and 256 KiB of float32, on one thread and on all. Every figure is that of the public function with its
argument checks, writing to a given array. `of memory` is the time of np.copyto (fake-quantize) or of reading all values
(np.max; statistics), which numpy does on one thread, divided by that of the job; jobs take turns, with many calls per
turn for the small array. `times torch` compares with torch.fake_quantize on as many threads, if torch is installed; it
is timed last because its threads keep spinning. Compilation is not counted (it is cached on disk). Two rows bound the
others: a call of fake-quantize on sixteen values, which takes a noticeable share of a copy of 256 KiB; and the
scattering of counts alone, in the loop that qmath uses, one table entry per value. An array of 256 KiB stays on one
thread, so its rows only differ by noise; on a busy machine, so do those of torch.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qmath
from benchmarks.common import arguments, in_turn, report

Job = Callable[[], Any]
SIZES = {"64 MiB": 1 << 26, "256 KiB": 1 << 18}
CALLS = {"64 MiB": 1, "256 KiB": 64}  # calls of a job per turn
RUNS = 15
CHANNELS, BINS = 64, 2048
TARGETS = {"copy": 0.8, "read": 0.5}


def quantizers(x: NDArray[np.float32], out: NDArray[np.float32]) -> dict[str, Job]:
    """Fake-quantize jobs on x, and on x viewed as a batch of images, all writing to `out`."""
    images, images_out = x.reshape(-1, CHANNELS, 32, 32), out.reshape(-1, CHANNELS, 32, 32)
    tensor = qmath.Grid.symmetric(3.0, bits=4)
    channel = qmath.Grid.symmetric(np.linspace(2.0, 4.0, CHANNELS), bits=4, axis=1)
    found: dict[str, Job] = {}
    for rounding in ("half_even", "half_up"):
        found[f"per tensor, {rounding}"] = lambda r=rounding: qmath.fake_quantize(x, tensor, rounding=r, out=out)
        found[f"per channel, {rounding}"] = lambda r=rounding: qmath.fake_quantize(
            images, channel, rounding=r, out=images_out
        )
    for bits in (3, 4):
        table = qmath.rounding_table(0.4, 0.5, bits=bits)
        found[f"Q-Rater table, {bits} bits"] = lambda t=table: t.fake_quantize(x, 0.5, out=out)
    return found


def summaries(x: NDArray[np.float32]) -> dict[str, Job]:
    """One-pass statistics jobs: moments alone, and with a histogram."""
    images = x.reshape(-1, CHANNELS, 32, 32)
    return {
        "moments and 2048 bins": lambda: accumulate(images, None, BINS),
        "moments and 2048 bins, per channel too": lambda: accumulate(images, 1, BINS),
        "moments alone": lambda: accumulate(images, None, 0),
    }


def accumulate(x: NDArray[np.float32], axis: int | None, bins: int) -> None:
    """Accumulate statistics without `result`, whose cost does not depend on the data."""
    qmath.StatisticsAccumulator(bins=bins, channel_axis=axis).update(x)


def scatter(x: NDArray[np.float32]) -> Job:
    """The counting loop alone: increments one table entry per value, with known bins in the cache."""
    from qmath.kernels.statistics import tally

    cells = np.clip(x[: 1 << 16] * (BINS / 16) + BINS / 2, 0, BINS - 1).astype(np.int32)
    pairs, tables = cells.view(np.uint64), np.zeros((4, BINS), np.uint32)
    return lambda: [tally(cells, pairs, cells.size, tables) for _ in range(x.size // cells.size)]


def torch_jobs(x: NDArray[np.float32], threads: int) -> dict[str, Job]:
    """torch's fake-quantize; no jobs if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    torch.set_num_threads(threads)
    flat = torch.from_numpy(x)
    images = flat.reshape(-1, CHANNELS, 32, 32)
    scale = torch.linspace(2.0, 4.0, CHANNELS) / 7
    zero = torch.zeros(CHANNELS, dtype=torch.int32)
    return {
        "torch per tensor": lambda: torch.fake_quantize_per_tensor_affine(flat, 3 / 7, 0, -7, 7),
        "torch per channel": lambda: torch.fake_quantize_per_channel_affine(images, scale, zero, 1, -7, 7),
    }


def timed_calls(jobs: Mapping[str, Job], calls: int) -> dict[str, float]:
    """The median seconds of a call."""

    def repeated(job: Job) -> Job:
        return lambda: [job() for _ in range(calls)]

    seconds = in_turn({name: repeated(job) for name, job in jobs.items()}, runs=RUNS, warmup=2)
    return {name: value / calls for name, value in seconds.items()}


def measure(size: str, threads: int) -> list[dict[str, Any]]:
    """The rows for one array size and number of threads."""
    x = np.random.default_rng(0).standard_normal(SIZES[size] // 4, dtype=np.float32)
    out = np.zeros_like(x)
    qmath.set_threads(threads)
    writing, reading = quantizers(x, out), summaries(x)
    if threads == 1:
        reading["(scattering counts alone)"] = scatter(x)
        few, tensor = x[:16].copy(), qmath.Grid.symmetric(3.0, bits=4)
        writing["(a call on 16 values)"] = lambda: qmath.fake_quantize(few, tensor, out=few)
    reference = {"copy": lambda: np.copyto(out, x), "read": lambda: x.max()}
    seconds = timed_calls(reference | writing | reading, CALLS[size]) | timed_calls(torch_jobs(x, threads), 1)
    rows = []
    for name in [*writing, *reading]:
        against = "copy" if name in writing else "read"
        rival = f"torch {name.split(',')[0]}"
        ratio = seconds[against] / seconds[name]
        rows.append(
            {
                "array": size,
                "threads": threads,
                "job": name,
                "microseconds": round(seconds[name] * 1e6, 1),
                "against": against,
                "of memory": ratio,
                "target": TARGETS[against],
                "met": "yes" if ratio >= TARGETS[against] else "no",
                "times torch": seconds[rival] / seconds[name] if rival in seconds else None,
            }
        )
    return rows


def main() -> None:
    options = arguments(__doc__)
    most = options.threads or qmath.get_threads()
    rows = [row for size in SIZES for threads in sorted({1, most}) for row in measure(size, threads)]
    torch = "with torch" if importlib.util.find_spec("torch") else "torch is not installed: no comparison"
    report(f"qmath kernels, {torch}", rows, json_path=options.json)


if __name__ == "__main__":
    sys.exit(main())
