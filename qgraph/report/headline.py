"""The first thing on a report: how much smaller, how much faster, how much worse, and whether to be content."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qgraph.report.html import Markup, element

if TYPE_CHECKING:
    from qgraph.report.contents import Report, Variant

KEPT_POINTS, LOST_POINTS = 0.5, 2.0  # of accuracy: not worth a word, and too many
CLOSE_DB, FAR_DB = 25.0, 20.0  # of the worst output, without labels

Judged = tuple[str, str]


def headline(report: Report) -> Markup:
    """A card for every model, and what was measured where."""
    return element("div", [_card(report, variant) for variant in report.variants], class_="cards")


def judged(report: Report, variant: Variant) -> Judged:
    """`good`, `fair`, `poor` or `unknown`, and the sentence that says so."""
    quality = variant.quality
    if quality is None:
        return "unknown", "Not measured: no samples."
    if quality.top1 is not None and report.float_top1 is not None:
        lost = report.float_top1 - quality.top1
        if lost <= KEPT_POINTS:
            return "good", "Keeps the accuracy of the float model."
        if lost <= LOST_POINTS:
            return "fair", f"Loses {lost:.1f} points of accuracy."
        return "poor", f"Loses {lost:.1f} points of accuracy: give it more bits, or keep its worst layers in floats."
    worst = min(_outputs(report, variant).values(), default=quality.sqnr_db)
    if worst is None or math.isnan(worst):
        return "unknown", "Its outputs have no figure: judge it on your task."
    if worst >= CLOSE_DB:
        return "good", "Close to the float model."
    if worst >= FAR_DB:
        return "fair", "Near the float model: check it on your task."
    return "poor", "Far from the float model: give it more bits, or keep its worst layers in floats."


def _outputs(report: Report, variant: Variant) -> dict[str, float]:
    """The dB of every output: one sample at a time where there is a verdict, in batches otherwise."""
    if report.verdict is not None and report.verdict.outputs:
        return {output.name: output.sqnr_db for output in report.verdict.outputs if output.sqnr_db is not None}
    known = {} if variant.quality is None else variant.quality.outputs
    return {name: value for name, value in known.items() if value is not None}


def _card(report: Report, variant: Variant) -> Markup:
    kind, sentence = judged(report, variant)
    parts = (_size(report, variant), _speed(variant), _quality(report, variant), _integers(variant))
    figures = [element("div", element("dt", n), element("dd", big, element("small", more))) for n, big, more in parts]
    return element(
        "div",
        element("p", variant.name, class_="name"),
        element("dl", figures),
        element("p", sentence, class_=f"verdict {kind}"),
        class_="card",
    )


def _size(report: Report, variant: Variant) -> tuple[str, str, str]:
    times = report.nbytes / max(variant.nbytes, 1)
    text = f"{times:.1f}× smaller" if times >= 1 else f"{1 / times:.1f}× larger"
    return "size", text, f"{_bytes(variant.nbytes)}, float {_bytes(report.nbytes)}"


def _speed(variant: Variant) -> tuple[str, str, str]:
    if variant.latency is None:
        return "speed", "-", "not measured"
    ratio = variant.latency
    text = f"{1 / ratio:.1f}× faster" if ratio < 0.95 else f"{ratio:.1f}× slower" if ratio > 1.05 else "as fast"
    return "speed", text, f"{ratio:.2f} of float's time, one thread"


def _quality(report: Report, variant: Variant) -> tuple[str, str, str]:
    quality = variant.quality
    if quality is None:
        return "quality", "-", "not measured"
    if quality.top1 is not None and report.float_top1 is not None:
        return "accuracy", f"{quality.top1:.2f} %", f"float {report.float_top1:.2f} %"
    outputs = _outputs(report, variant)
    worst = min(((v, name) for name, v in outputs.items()), default=None)
    if worst is None:
        return "quality", "-", "no output of floats"
    which = "signal over error of the output" if len(outputs) == 1 else f"worst output, {worst[1]}"
    return "quality", f"{worst[0]:.1f} dB", which


def _integers(variant: Variant) -> tuple[str, str, str]:
    known = [row.integer for row in variant.layers if row.integer is not None]
    if not known:
        return "on integers", "-", "not known"
    return "on integers", f"{sum(known)} of {len(variant.layers)}", "layers, as onnxruntime runs them"


def _bytes(count: int) -> str:
    """Bytes as kB or MB, of 1,000 as file managers count them."""
    if count < 1000:
        return f"{count} B"
    return (
        f"{count / 1e3:.3g} kB"
        if count < 999_500
        else f"{count / 1e6:.3g} MB"
        if count < 1e9
        else f"{count / 1e9:.3g} GB"
    )
