"""Show the verdict on a written file, and check it against a threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.cli.console import next_step, show
from qgraph.cli.invocation import READING, words_of
from qgraph.errors import QGraphError, UsageError

if TYPE_CHECKING:
    from qgraph.assess.verdict import Verdict

Threshold = tuple[float, str]


class NotGoodEnough(QGraphError):
    """The file was written, but it is worse than the threshold."""


def show_quality(quality: Verdict | None) -> None:
    """Print the verdict on a file in three lines, if it was measured."""
    if quality is not None:
        show(*quality.lines())


def check_threshold(fail_below: Threshold | None, *, measure: bool) -> None:
    """Raise `UsageError` for a threshold without a measurement to compare with it."""
    if fail_below is not None and not measure:
        raise UsageError("--fail-below needs a measurement: leave --no-measure out")


def hold_against(fail_below: Threshold | None, quality: Verdict | None, output: str) -> None:
    """Raise `NotGoodEnough` if a file is below the threshold, or has no figure to compare with it."""
    if fail_below is None or quality is None:
        return
    least, unit = fail_below
    figure = quality.figure(unit)
    if figure.value is None:
        raise NotGoodEnough(
            f"{output} is written, and --fail-below {least:g}{unit} cannot be checked: no {figure.name} was measured; "
            f"{quality.lines()[0]}"
        )
    if not figure.value >= least:
        found = figure.problem or f"{figure.value:.4g} {figure.unit}".strip()
        raise NotGoodEnough(
            f"{output} is written, but it is below --fail-below {least:g}{unit}: {figure.name} has {found}, on "
            f"{quality.samples} samples"
        )


def next_judgement(output: str, model: str) -> None:
    """Show how to measure a file on other data."""
    words = ("evaluate", output, "--against", model, "--data", "test.npz", *words_of(*READING))
    next_step("measure it on other data", *words)
