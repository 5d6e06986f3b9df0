"""`qgraph sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.console import next_step, progress, show, show_json, silence_warnings, table
from qgraph.cli.kinds import PATH, BitList
from qgraph.cli.options import (
    data_options,
    direction_option,
    executor_option,
    given,
    method_option,
    preprocessing,
    run_options,
)
from qgraph.running.files import check_writable, write_atomically

if TYPE_CHECKING:
    from rich.text import Text

    from qgraph.methods.zeroq.sensitivity import Sensitivity

_KINDS = ("measured", "predicted")
_SHADES = ("green", "yellow", "dark_orange", "red")  # each for a quarter of the range of log Omega


@click.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, metavar="SENSITIVITY.json", help="Where to write the table.")
@click.option("--bits", type=BitList(), default=(2, 4, 8), help="Bit-widths to try, of 2 to 8.  [default: 2,4,8]")
@method_option("How weights are quantized: NAMES.")
@data_options()
@click.option("--per-channel/--per-tensor", default=None, help="One scale per output channel (default), or one.")
@click.option(
    "--symmetric/--asymmetric",
    default=None,
    help="Weight grids symmetric about zero (default at 8 bits), or with both ends chosen.",
)
@click.option("--weight-clip", metavar="METHOD", help="Weight clipping: max, percentile, mse, kl or aciq.")
@click.option("--keep", multiple=True, metavar="NAME", help="Leave a layer in float (glob; repeatable).")
@direction_option
@executor_option
@click.option("--seed", type=int, metavar="N", help="Seed of distilled data.  [default: 0]")
@click.option("--resume", metavar="DIR", help="Folder for checkpoints, from which an interrupted job continues.")
@run_options
def sensitivity(model: str, output: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure how far the outputs of MODEL move when one layer alone is quantized, at each bit-width (ZeroQ).

    Without --data, samples are distilled from the model.

    \b
    Examples:
      qgraph sensitivity model.onnx -o sensitivity.json
      qgraph sensitivity model.onnx --data images/ --bits 3,4,6 --direction reverse
    """
    from qgraph.jobs.sensitivity import measure_sensitivity

    if quiet:
        silence_warnings()
    if output is not None:
        check_writable(output, source=model)
    mean, std = options.pop("mean"), options.pop("std")
    bars = progress(quiet or as_json)
    result = measure_sensitivity(model, preprocessing=preprocessing(mean, std), progress=bars, **given(options))
    if output is not None:
        write_atomically(Path(output), result.to_json().encode())
    if as_json:
        show_json(result.to_dict())
    elif not quiet:
        _show(model, result)
        next_step("fewer bits where they cost least", "quantize", model, "-o", "small.onnx", "--weights", "mixed")


def _show(model: str, result: Sensitivity) -> None:
    """Print measured sensitivities, followed by the closed forms."""
    bits = sorted({k for row in result.layers for k in row.bits})
    compared = " + ".join(f"{kind} of {name}" for name, kind in result.outputs)
    title = f"sensitivity of {model} on {result.samples} samples of {result.data}: {compared}"
    columns = [*(f"{k} bits" for k in bits), *(f"{k}, closed" for k in bits)]
    rows = table(title, "layer", "weights", *columns)
    ranges = [[v for row in result.layers for v in getattr(row, kind) if v > 0] for kind in _KINDS]
    for row in result.layers:
        cells = []
        for kind, values in zip(_KINDS, ranges, strict=True):
            known = dict(zip(row.bits, getattr(row, kind), strict=True))
            cells += [_cell(known.get(k), values) for k in bits]
        rows.add_row(row.name, f"{row.weights:,}", *cells)
    show(rows, f"rank correlation of measured and closed form: {result.agreement():.3f}")


def _cell(value: float | None, positive: list[float]) -> Text:
    """The value, shaded by its position between the smallest and the largest on a logarithmic scale."""
    from rich.text import Text

    if value is None:
        return Text("-")
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    place = 0
    while place < len(_SHADES) - 1 and value > low * (high / low) ** ((place + 1) / len(_SHADES)):
        place += 1
    return Text(f"{value:.2e}", style=_SHADES[place])
