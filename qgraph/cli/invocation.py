"""The command line as a plan keeps it: what decides the result, without where it goes and how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

_ELSEWHERE = {"-o", "--output", "--plan", "--report", "--resume", "--threads", "--save-recipe", "--log-file"}
_SHOWN = {"--json", "--quiet", "-v", "--verbose"}


def whole_command() -> str:
    """The command that runs, as it was given."""
    return shlex.join(("qgraph", *(click.get_current_context().find_root().obj or ())))


READING = ("--mean", "--std", "--shape", "--batch-axis")
"""Options that say how samples are read: the same in every command on the same model."""


def words_of(*names: str) -> list[str]:
    """These options with their values, as the command line that runs has them."""
    arguments: Sequence[str] = click.get_current_context().find_root().obj or ()
    found: list[str] = []
    for index, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        if name in names:
            found += [argument] if equals else arguments[index : index + 2]
    return found


def command() -> str:
    """The command that runs, so that the same inputs give the same text: `qgraph quantize model.onnx --weights 4`."""
    arguments: Sequence[str] = click.get_current_context().find_root().obj or ()
    kept, skip = ["qgraph"], False
    for argument in arguments:
        name = argument.partition("=")[0]
        if not skip and name not in _ELSEWHERE | _SHOWN:
            kept.append(argument)
        skip = not skip and name in _ELSEWHERE and "=" not in argument
    return shlex.join(kept)
