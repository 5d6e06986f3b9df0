"""`qgraph distill`."""

from __future__ import annotations

import io
from pathlib import Path

import click

from qgraph.cli.clock import elapsed
from qgraph.cli.console import next_step, progress, show, show_json
from qgraph.cli.help import Command, grouped
from qgraph.cli.kinds import PATH
from qgraph.cli.options import batch_axis_option, batch_option, resume_option, run_options, shape_option
from qgraph.running.files import check_writable, write_atomically


@click.command(cls=Command, short_help="Make samples from the model (ZeroQ).")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="DATA.npz", help="Where to write the samples.")
@click.option(
    "--count", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="How many samples."
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=60, show_default=True, metavar="N", help="Steps of Adam, at most."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the initial noise.")
@resume_option
@grouped("Data", batch_option, shape_option, batch_axis_option)
@run_options
def distill(
    model: str,
    output: str,
    count: int,
    steps: int,
    seed: int,
    batch: int | None,
    shapes: dict[str, tuple[int, ...]] | None,
    batch_axes: dict[str, int] | None,
    resume: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Distil samples from the BatchNormalization statistics of MODEL (ZeroQ), for calibration without data.

    \b
    Example:
      qgraph distill model.onnx -o distilled.npz --count 64
    """
    import numpy as np

    from qgraph.jobs.distil import distilled_inputs
    from qgraph.onnxfile.load import load
    from qgraph.running.job import Job

    check_writable(output, source=model)
    inputs = distilled_inputs(
        load(model),
        Job(seed=seed, threads=threads, resume=resume, progress=progress(quiet or as_json)),
        count=count,
        steps=steps,
        batch=batch,
        shapes=shapes,
        axes=batch_axes,
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **inputs)  # type: ignore[arg-type]
    write_atomically(Path(output), buffer.getvalue())
    seconds = elapsed()
    if as_json:
        made = {name: list(array.shape) for name, array in inputs.items()}
        show_json({"output": output, "count": count, "inputs": made, "seconds": seconds})
    elif not quiet:
        described = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        show(f"{output}: {described} in {seconds} s")
        next_step("calibrate on these samples", "quantize", model, "--data", output, "-o", "small.onnx")
