"""`qgraph equalise`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli.clock import elapsed
from qgraph.cli.console import next_step, progress, show, show_json
from qgraph.cli.help import Command
from qgraph.cli.invocation import READING, words_of
from qgraph.cli.kinds import OUTPUT, PATH, Bits
from qgraph.cli.options import data_options, preprocessing, run_options


@click.command(cls=Command, short_help="Scale channels between layers for few bits.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=OUTPUT, required=True, metavar="OUT.onnx", help="Where to write the model.")
@click.option("--weights", type=Bits(), default=4, show_default=True, help="Bits that weights will have.")
@click.option("--activations", type=Bits(), default=4, show_default=True, help="Bits that activations will have.")
@data_options(required=True)
@run_options
def equalise(
    model: str,
    data: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    output: str,
    weights: int,
    activations: int,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **reading: Any,
) -> None:
    """Write a float model that computes the same as MODEL and loses less when it is quantized to few bits.

    \b
    Example:
      qgraph equalise model.onnx -o equal.onnx --data calibration.npz --weights 4 --activations 4
    """
    from qgraph.jobs.equalise import equalise as run
    from qgraph.onnxfile.write import save

    reading |= {"preprocessing": preprocessing(mean, std), "progress": progress(quiet or as_json)}
    made = run(model, data, weights=weights, activations=activations, threads=threads, **reading)
    nbytes = save(made, output, source=model)
    groups = [
        {"tensor": g.tensor, "noise": g.noise / g.plain_noise, "exponents": list(g.exponents)} for g in made.groups
    ]
    if as_json:
        show_json({"output": output, "bytes": nbytes, "groups": groups, "seconds": elapsed()})
    elif not quiet:
        show(f"{output}: channels of {len(groups)} groups of tensors scaled in {elapsed()} s")
        bits = ("--weights", str(weights), "--activations", str(activations))
        words = ("quantize", output, "--data", data, *words_of(*READING), *bits, "-o", "small.onnx")
        next_step("quantize it", *words)
