"""The options of `--weights mixed` and `--activations mixed`, and of what is measured to choose bits."""

from __future__ import annotations

import click

from qgraph.cli.help import Renamed, grouped
from qgraph.cli.kinds import BitList
from qgraph.cli.options import F, executor_option


def mixed_options(f: F) -> F:
    """The options of mixed bits: their budgets, and how they are chosen."""
    return grouped(
        "Mixed bits",
        click.option("--size-mb", type=float, metavar="X", help="Budget of mixed weights; 1 MB = 2**20 bytes."),
        click.option("--average-bits", type=float, metavar="X", help="The same as bits per weight.  [default: 4]"),
        click.option(
            "--average-activation-bits",
            type=float,
            metavar="X",
            help="Budget of mixed activations: bits per value that layers read.  [default: 5]",
        ),
        click.option(
            "--max-drop",
            type=float,
            metavar="POINTS",
            help="Fewest bytes of what is mixed, weights by default, that lose at most this much accuracy.",
        ),
        click.option("--bits", type=BitList(), help="Bits that weights or activations may take.  [default: 2 to 8]"),
        click.option(
            "--select",
            "search",
            cls=Renamed,
            former="--search",
            type=click.Choice(["frontier", "groups"]),
            help="Add sensitivities (default), or measure combinations, group by group.",
        ),
        direction_option,
        executor_option,
    )(f)


def direction_option(f: F) -> F:
    return grouped(
        "Mixed bits",
        click.option(
            "--direction",
            type=click.Choice(["forward", "reverse"]),
            help="Sensitivity as KL(float || quantized) (default), or KL(quantized || float).",
        ),
    )(f)
