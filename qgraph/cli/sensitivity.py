"""`qgraph sensitivity`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from qgraph.cli.console import next_step, progress, show, show_json, silence_warnings, table
from qgraph.cli.dry_run import dry_run_option
from qgraph.cli.help import Command
from qgraph.cli.kinds import OUTPUT, PATH, BitList
from qgraph.cli.log import verbose
from qgraph.cli.mixed_options import direction_option
from qgraph.cli.options import (
    data_options,
    executor_option,
    given,
    keep_option,
    method_option,
    preprocessing,
    resume_option,
    run_options,
    set_option,
    weight_clip_option,
)
from qgraph.cli.papers import gradients_option, protocol_option
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from rich.text import Text

    from qgraph.methods.zeroq.sensitivity import Row, Sensitivity

GIVEN_ARRAYS = "the given mapping"  # how a dataset describes what was distilled
_MEASURES = {"kl": "KL divergence", "nse": "squared error over signal"}
_SHADES = ("green", "yellow", "dark_orange", "red")  # each for a quarter of the range of log Omega


@click.command(cls=Command, short_help="Measure how much each layer matters.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=OUTPUT, metavar="SENSITIVITY.json", help="Where to write the table.")
@click.option("--bits", type=BitList(), default=(2, 4, 8), help="Bit-widths to try, of 2 to 8.  [default: 2,4,8]")
@method_option("How weights are quantized: NAMES.")
@data_options()
@click.option("--per-channel/--per-tensor", default=None, help="One scale per output channel (default), or one.")
@click.option(
    "--symmetric/--asymmetric",
    default=None,
    help="Weight grids symmetric about zero (default at 8 bits), or with both ends chosen.",
)
@weight_clip_option
@keep_option
@click.option("--tensors", is_flag=True, help="Also measure every tensor that layers read, quantized alone.")
@set_option
@protocol_option
@gradients_option
@direction_option
@executor_option
@click.option("--seed", type=int, metavar="N", help="Seed of distilled data.  [default: 0]")
@resume_option
@dry_run_option("output")
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
    mean, std = options.pop("mean"), options.pop("std")
    if options.pop("tensors"):
        options["activations"] = "mixed"
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
    """Print measured sensitivities in one unit; with -v, the closed forms as well."""
    compared = " + ".join(f"{_MEASURES.get(kind, kind)} of {name}" for name, kind in result.outputs)
    samples = "distilled samples" if result.data == GIVEN_ARRAYS else f"samples of {result.data}"
    described = f"{compared}, on {result.samples} {samples}"
    _show_one(model, result, ("layer", "weights"), result.layers, described)
    if result.tensors:
        _show_one(model, result, ("tensor", "values"), result.tensors, described)
    if verbose():
        _show_one(
            model, result, ("layer", "weights"), result.layers, "in closed form, from errors of weights", "predicted"
        )
    agreement = result.agreement()
    if not math.isnan(agreement):
        show(f"rank correlation of measured and closed form: {agreement:.3f}")


def _show_one(
    model: str,
    result: Sensitivity,
    columns: tuple[str, str],
    rows: Sequence[Row],
    described: str,
    kind: Literal["measured", "predicted"] = "measured",
) -> None:
    """Print the sensitivities of layers or tensors; `columns` say what they are, and what they have."""
    bits = sorted({k for row in rows for k in row.bits})
    positive = [v for row in rows for v in getattr(row, kind) if v > 0]
    unit, text = _unit(max(positive, default=1.0))
    if kind == "measured" and all(measure != "nse" for _, measure in result.outputs):
        text = f"{text} nats" if text else "nats"
    title = f"sensitivity of {model}{text and f', {text}'}: {described}"
    shown = table(title, *columns, *(f"{k} bits" for k in bits), heaviest="the most sensitive ones")
    for row in rows:
        known = dict(zip(row.bits, getattr(row, kind), strict=True))
        cells = (_cell(known.get(k), positive, unit) for k in bits)
        shown.add_row(row.name, f"{row.count:,}", *cells, weight=max(row.measured, default=0.0))
    show(shown)


def _unit(largest: float) -> tuple[float, str]:
    """A power of a thousand in which the largest value has one to three digits, and how to write it."""
    power = math.floor(math.log10(largest) / 3) * 3
    return 10.0**power, f"1e{power}" if power else ""


def _cell(value: float | None, positive: list[float], unit: float) -> Text:
    """The value, shaded by its position between the smallest and the largest on a logarithmic scale."""
    from rich.text import Text

    if value is None:
        return Text("-")
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    place = 0
    while place < len(_SHADES) - 1 and value > low * (high / low) ** ((place + 1) / len(_SHADES)):
        place += 1
    return Text(_digits(value / unit), style=_SHADES[place])


def _digits(value: float) -> str:
    """Three digits, and none behind hundredths."""
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}" if value < 100 else f"{value:.0f}"
