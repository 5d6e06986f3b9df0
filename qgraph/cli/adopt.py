"""`qgraph adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.console import next_step, progress, show, show_json, silence_warnings, table
from qgraph.cli.help import Command, Renamed, grouped
from qgraph.cli.kinds import OUTPUT, PATH
from qgraph.cli.options import data_options, given, preprocessing, run_options
from qgraph.running.cpu import has_fast_integers

if TYPE_CHECKING:
    from qgraph.jobs.adopt import Adopted


@click.command(cls=Command, short_help="Make another tool's file run on integers.")
@click.argument("model", type=PATH)
@click.option(
    "-o", "--output", type=OUTPUT, required=True, metavar="OUT.onnx", help="Where to write the rewritten model."
)
@click.option(
    "--against",
    "float_model",
    cls=Renamed,
    former="--float",
    type=PATH,
    metavar="FLOAT.onnx",
    help="The model that MODEL was made from, to judge by.",
)
@data_options()
@grouped(
    "Files",
    click.option("--plan", type=OUTPUT, metavar="PLAN.json", help="Also write the plan."),
    click.option(
        "--network", type=OUTPUT, metavar="NET.onnx", help="Also write the float network that the plan is for."
    ),
)
@click.option(
    "--target-cpu",
    type=click.Choice(["any", "vnni"]),
    default="vnni",
    show_default=True,
    help="vnni: keep the codes of weights; any: move those that could saturate on CPUs without VNNI.",
)
@click.option("--measure/--no-measure", default=True, help="Compare the result in onnxruntime (default), or not.")
@run_options
def adopt(
    model: str,
    output: str,
    plan: str | None,
    network: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Rewrite a file that another tool has quantized, so that onnxruntime runs it on integers.

    Codes of weights and grids of activations stay as they are where integer kernels take them; the table says what had
    to move. Data give ranges to tensors that the file left in floats.

    \b
    Examples:
      qgraph adopt quantized.onnx -o fast.onnx
      qgraph adopt quantized.onnx -o fast.onnx --against model.onnx --data test.npz
      qgraph adopt quantized.onnx -o fast.onnx --plan plan.json --network net.onnx
    """
    from qgraph.jobs.adopt import adopt as run
    from qgraph.onnxfile.write import save
    from qgraph.running.files import write_atomically

    if quiet:
        silence_warnings()
    mean, std = options.pop("mean"), options.pop("std")
    bars = progress(quiet or as_json)
    found = run(model, preprocessing=preprocessing(mean, std), progress=bars, **given(options))
    nbytes = found.save(output)
    if plan is not None:
        write_atomically(Path(plan), found.plan.to_json().encode())
    if network is not None:
        save(found.net.ir_model, network, source=model)
    if as_json:
        show_json({"output": output, "bytes": nbytes, **found.to_dict()})
    elif not quiet:
        _show(found, output, nbytes)
        next_step("what onnxruntime makes of it", "inspect", output, "--fused")


def _show(found: Adopted, output: str, nbytes: int) -> None:
    rows = table("layers", "layer", "op", "bits", "runs on", "what moved", left=5, heaviest="those that moved first")
    for layer in found.layers:
        told = "; ".join(part for part in (layer.moved, layer.lost) if part)
        rows.add_row(layer.name, layer.op, str(layer.bits), layer.runs, told, weight=bool(told))
    show(rows, f"{found.kept} of {len(found.layers)} layers keep every code of their weight")
    if found.saturating:
        here = " such as this one" if has_fast_integers() is False else ""
        show(
            f"{found.saturating} layers can saturate, and compute something else, on processors without VNNI{here}: "
            f"--target-cpu any moves their codes"
        )
    share = nbytes / max(found.given.nbytes, 1)
    show(f"{output}: {nbytes:,} bytes ({share:.0%} of the {found.given.nbytes:,} of {found.given.source})")
    if found.quality is not None:
        show(*found.quality.lines())
