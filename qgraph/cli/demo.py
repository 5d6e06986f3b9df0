"""`qgraph demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.console import next_step, number, progress, show, show_json, table
from qgraph.cli.help import Command
from qgraph.cli.kinds import FOLDER
from qgraph.cli.log import log_options
from qgraph.cli.options import threads_option
from qgraph.errors import ModelError
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from qgraph.onnxfile.model import Model
    from qgraph.running.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the demo: the options for `quantize`."""

    name: str
    data: bool = True
    options: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant(name="W8A8", options={"weights": 8, "activations": 8}),
    Variant(name="W4A8", options={"weights": 4, "activations": 8}),
    Variant(name="W4A4", options={"weights": 4, "activations": 4}),
    Variant(name="W8A8, no data", data=False, options={"weights": 8, "activations": 8}),
    Variant(name="W4A8, no data", data=False, options={"weights": 4, "activations": 8}),
)
LATENCY_BATCH = 32


@click.command(cls=Command, short_help="Try it on a small network.")
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    default="qgraph-demo",
    metavar="DIR",
    show_default=True,
    help="Folder for the results.",
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
@log_options
def demo(output: str, threads: int | None, as_json: bool) -> None:
    """Quantize the digits network that ships with qgraph, and show accuracy, size and latency.

    \b
    Example:
      qgraph demo
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot make the folder {folder}: {error.strerror}; choose another with -o") from error
    with as_file(files("qgraph") / "demo_assets") as assets:
        rows = _run(assets, folder, threads, progress(as_json))
    if as_json:
        show_json(rows)
        return
    columns = ("model", "accuracy %", "SQNR dB", "bytes", "latency / float", "seconds")
    result = table("handwritten digits, a small residual network; 600 test images", *columns)
    for row in rows:
        result.add_row(
            row["model"],
            number(row["top1"]),
            number(row["sqnr_db"], 1),
            f"{row['bytes']:,}",
            number(row["latency"]),
            number(row["seconds"]),
        )
    show(result, f"models and plans are in {folder}/")
    next_step(
        "the same for a model of yours", "quantize", "model.onnx", "--data", "calibration.npz", "-o", "small.onnx"
    )


def _run(assets: Path, folder: Path, threads: int | None, bars: Progress) -> list[dict[str, Any]]:
    from qgraph.assess.evaluate import evaluate
    from qgraph.jobs.quantize import quantize
    from qgraph.onnxfile.load import load
    from qgraph.samples.dataset import open_data

    source, test = assets / "digits.onnx", assets / "digits_test.npz"
    original = load(source)
    feeds = next(iter(open_data(test, original).batches(LATENCY_BATCH))).feeds
    accuracy = evaluate(original, test, threads=threads)
    rows = [
        {
            "model": "float",
            "top1": accuracy.top1,
            "sqnr_db": None,
            "bytes": original.nbytes,
            "latency": 1.0,
            "seconds": None,
        }
    ]
    with bars.stage("quantizing", len(VARIANTS)) as advance:
        for variant in VARIANTS:
            data = assets / "digits_calibration.npz" if variant.data else None
            result = quantize(source, data, threads=threads, **variant.options)
            path = folder / f"digits-{variant.name.lower().replace(', ', '-').replace(' ', '-')}.onnx"
            result.save(path)
            write_atomically(path.with_suffix(".plan.json"), result.plan.to_json().encode())
            rows.append(_row(variant, path, original, test, feeds, result.seconds["total"], threads))
            advance(1)
    return rows


def _row(
    variant: Variant,
    path: Path,
    original: Model,
    test: Path,
    feeds: dict[str, Any],
    seconds: float,
    threads: int | None,
) -> dict[str, Any]:
    from qgraph.assess.evaluate import evaluate, latency_ratio
    from qgraph.onnxfile.load import load

    quantized = load(path)
    quality = evaluate(quantized, test, against=original, threads=threads)
    return {
        "model": variant.name,
        "top1": quality.top1,
        "sqnr_db": quality.sqnr_db,
        "bytes": quantized.nbytes,
        "latency": latency_ratio(quantized, original, feeds, threads=threads),
        "seconds": seconds,
    }
