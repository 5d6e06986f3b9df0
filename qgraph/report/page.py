"""The report as one HTML file without scripts or external files, for phones, light and dark, and screen readers.

The numbers of every chart are in a table as well; every table has a caption, and scrolls by keyboard if it is too wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.resources import files

import numpy as np

from qgraph.report.charts import Axis, Point, Series, chart
from qgraph.report.contents import LayerRow, Report, Variant
from qgraph.report.html import Content, Markup, element
from qgraph.report.mixed import frontier, sensitivities
from qgraph.report.parts import Section, details, figure, number, table
from qgraph.report.pictures import contact_sheet

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MEGABYTE = 2**20


def render(report: Report) -> str:
    """The whole page."""
    title = f"{report.source}: quantization report"
    sections = [section for make in SECTIONS if (section := make(report)) is not None]
    contents = element("ul", [element("li", element("a", name, href=f"#{_anchor(name)}")) for name, _ in sections])
    body = element(
        "body",
        element("a", "Skip to the results", href="#results", class_="skip"),
        element("header", element("h1", report.source), _introduction(report)),
        element("nav", contents, aria_label="Contents"),
        element("main", [_section(name, content) for name, content in sections], id="results"),
        element("footer", element("p", "Written by qgraph. Model digest: ", element("code", report.digest))),
    )
    return f"<!DOCTYPE html>\n{element('html', head(title), body, lang='en')}\n"


def head(title: str) -> Markup:
    """The head of a page: its title, and the style that all pages have."""
    style = (files("qgraph.report") / "style.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style)),
    )


def _introduction(report: Report) -> Markup:
    count = len(report.variants)
    what = "one quantized form" if count == 1 else f"{count} quantized forms"
    measured = f"measured on {report.count:,} samples: {report.data}" if report.count else "sizes and bits alone"
    return element("p", f"{what.capitalize()} of {report.source} ({report.nbytes:,} bytes), {measured}.")


def summary(report: Report) -> Section | None:
    """A table with one row per model, and a chart of size against quality."""
    models = table(
        "Size, quality and speed of every model",
        ("model", "bytes", "of float", "weight bits", "top-1 %", "KL, nats", "SQNR dB", "latency / float"),
        [_float_row(report), *(_variant_row(v, report) for v in report.variants)],
        stacked=True,
    )
    judged = () if report.verdict is None else report.verdict.lines()
    return "Summary", [_size_against_quality(report), models, *(element("p", line) for line in judged)]


def bits(report: Report) -> Section | None:
    """Charts with bars for weight bits and dots for activation bits, in graph order."""
    figures = []
    for variant in report.variants:
        weights = [
            Point(x=i, y=row.weight_bits, title=f"{row.name}: {row.weight_bits}-bit weights")
            for i, row in enumerate(variant.layers, 1)
            if row.weight_bits is not None
        ]
        operands = [
            Point(x=i, y=row.activation_bits, title=f"{row.name}: {row.activation_bits}-bit activations")
            for i, row in enumerate(variant.layers, 1)
            if row.activation_bits is not None
        ]
        series = [
            Series(name="weights", points=tuple(weights), colour=0, bars=True),
            Series(name="activations", points=tuple(operands), colour=1),
        ]
        count, top = len(variant.layers), max((p.y for p in weights + operands), default=8)
        x = Axis(label="layer, in graph order", low=0.5, high=count + 0.5, whole=True)
        y = Axis(label="bits", low=0, high=max(8.0, top) * 1.08, whole=True)
        drawn = chart(f"Bits of each layer in {variant.name}", series, x, y, height=170)
        figures.append(figure(variant.name, drawn, series))
    return "Bits per layer", element("div", figures, class_="grid")


def errors(report: Report) -> Section | None:
    """A chart of the error accumulated up to each layer."""
    series = [
        _layer_series(variant, index, lambda row: row.accumulated_sqnr_db)
        for index, variant in enumerate(report.variants)
    ]
    series = [s for s in series if s.points]
    if not series:
        return None
    count = len(report.variants[0].layers)
    x = Axis(label="layer, in graph order", low=0.5, high=count + 0.5, whole=True)
    y = Axis.over("SQNR, dB", [p.y for s in series for p in s.points])
    drawn = chart("Signal-to-noise ratio after each layer", series, x, y)
    text = "Signal over quantization noise in the result of each layer, errors of all layers before it included."
    return "Error along the network", [
        element("p", text),
        figure("Higher is closer to the float model", drawn, series),
    ]


def predictions(report: Report) -> Section | None:
    """A chart of closed-form errors against simulated ones."""
    series = []
    for index, variant in enumerate(report.variants):
        pairs = [(r, r.predicted_sqnr_db, r.simulated_sqnr_db) for r in variant.layers]
        points = [
            Point(x=p, y=m, title=f"{r.name}: predicted {p:.1f} dB, measured {m:.1f} dB")
            for r, p, m in pairs
            if p is not None and m is not None and math.isfinite(p) and math.isfinite(m)
        ]
        if points:
            series.append(Series(name=variant.name, points=tuple(points), colour=index))
    if not series:
        return None
    gaps = [abs(p.x - p.y) for s in series for p in s.points]
    both = [v for s in series for p in s.points for v in (p.x, p.y)]
    x, y = Axis.over("predicted SQNR, dB", both), Axis.over("measured SQNR, dB", both)
    drawn = chart("Predicted and measured signal-to-noise ratio of each layer", series, x, y, diagonal=True)
    text = (
        f"Each mark is one layer by itself: its error computed from statistics and closed forms, and simulated. "
        f"Half of the {len(gaps)} marks lie within {np.median(gaps):.1f} dB of the line of equal values."
    )
    return "Predicted against measured error", [element("p", text), figure("On the line: as predicted", drawn, series)]


def layers(report: Report) -> Section | None:
    """Tables with every number about every layer."""
    columns = ("layer", "op", "weights", "activations", "bytes", "predicted dB", "measured dB", "accumulated dB")
    tables = [
        details(
            f"Layers of {variant.name}",
            table(f"Layers of {variant.name}", columns, [_layer_row(row) for row in variant.layers], left=2),
            unfolded=len(report.variants) == 1,
        )
        for variant in report.variants
    ]
    return "Layers", tables


def kept(report: Report) -> Section | None:
    """A table of what stayed in floating point, and why."""
    rows = [(v.name, k.name, k.why) for v in report.variants for k in v.kept_float]
    if not rows:
        return None
    return "Kept in floating point", table("Layers that are not quantized", ("model", "layer", "why"), rows, left=3)


def distilled(report: Report) -> Section | None:
    """The distilled samples, as one picture."""
    sheet = None if report.distilled is None else contact_sheet(report.distilled)
    if sheet is None:
        return None
    uri, count = sheet
    text = (
        "Samples distilled from the statistics that the network's BatchNormalization layers keep; no data were given."
    )
    image = element("img", src=uri, alt=f"{count} distilled samples side by side, patterns of colour without objects")
    caption = element("figcaption", f"{count} samples, each stretched over its own range of values")
    return "Distilled samples", [element("p", text), element("figure", image, caption, class_="wide")]


SECTIONS: tuple[Callable[[Report], Section | None], ...] = (
    summary,
    frontier,
    bits,
    sensitivities,
    errors,
    predictions,
    distilled,
    layers,
    kept,
)


def _section(name: str, content: Content) -> Markup:
    anchor = _anchor(name)
    heading = element("h2", name, id=f"{anchor}-heading")
    return element("section", heading, content, id=anchor, aria_labelledby=f"{anchor}-heading")


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _size_against_quality(report: Report) -> Markup | None:
    """A chart of top-1 accuracy over size, or of SQNR without labels; None for a single point."""
    labelled = report.quality is not None and report.quality.top1 is not None
    points = []
    for variant in report.variants:
        quality = variant.quality
        value = None if quality is None else quality.top1 if labelled else quality.sqnr_db
        if value is not None and math.isfinite(value):
            points.append((variant.name, variant.nbytes / MEGABYTE, value))
    if labelled and report.quality is not None and report.quality.top1 is not None:
        points.append(("float", report.nbytes / MEGABYTE, report.quality.top1))
    if len(points) < 2:
        return None
    unit = "top-1 accuracy, %" if labelled else "SQNR of the outputs, dB"
    series = [
        Series(name=name, points=(Point(x=x, y=y, title=f"{name}: {x:.3f} MB, {y:.2f}"),), colour=index)
        for index, (name, x, y) in enumerate(points)
    ]
    x = Axis.over("MB (2^20 bytes)", [p[1] for p in points], zero=True)
    y = Axis.over(unit, [p[2] for p in points])
    return figure("Up and to the left is better", chart(f"{unit} against size", series, x, y), series)


def _float_row(report: Report) -> Sequence[Content]:
    top1 = None if report.quality is None else report.quality.top1
    return ("float", f"{report.nbytes:,}", "100%", "32", number(top1, 2), "-", "-", "1.00")


def _variant_row(variant: Variant, report: Report) -> Sequence[Content]:
    quality = variant.quality
    return (
        variant.name,
        f"{variant.nbytes:,}",
        f"{variant.nbytes / max(report.nbytes, 1):.0%}",
        number(variant.mean_weight_bits, 2),
        number(None if quality is None else quality.top1, 2),
        number(None if quality is None else quality.kl, 5),
        number(None if quality is None else quality.sqnr_db, 1),
        number(variant.latency, 2),
    )


def _layer_row(row: LayerRow) -> Sequence[Content]:
    return (
        row.name,
        row.op,
        "float" if row.weight_bits is None else row.weight_bits,
        "float" if row.activation_bits is None else row.activation_bits,
        "-" if row.weight_bytes is None else f"{row.weight_bytes:,}",
        number(row.predicted_sqnr_db, 1),
        number(row.measured_sqnr_db, 1),
        number(row.accumulated_sqnr_db, 1),
    )


def _layer_series(variant: Variant, index: int, value: Callable[[LayerRow], float | None]) -> Series:
    found = [(i, row.name, value(row)) for i, row in enumerate(variant.layers, 1)]
    points = [
        Point(x=i, y=v, title=f"{name}: {v:.1f} dB") for i, name, v in found if v is not None and math.isfinite(v)
    ]
    return Series(name=variant.name, points=tuple(points), colour=index, line=True)
