"""The sections of a report, each a heading and its content; None where there is nothing to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qgraph.methods.zeroq.allocate import MEGABYTE
from qgraph.report.charts import Axis, Point, Series, chart
from qgraph.report.contents import LayerRow, Report, Variant
from qgraph.report.headline import headline
from qgraph.report.html import Content, Markup, element
from qgraph.report.mixed import frontier, sensitivities
from qgraph.report.parts import Section, details, figure, number, table, versions_text
from qgraph.report.pictures import contact_sheet
from qgraph.report.ranges import range_chart, spanned
from qgraph.report.rows import row_chart


def summary(report: Report) -> Section | None:
    """The headline, a chart of size against quality, and a table with one row per model."""
    models = table(
        "Size, quality and speed of every model",
        ("model", "bytes", "of float", "weight bits", "top-1 %", "KL, nats", "SQNR dB", "latency / float"),
        [_float_row(report), *(_variant_row(v, report) for v in report.variants)],
        stacked=True,
    )
    judged = () if report.verdict is None else report.verdict.lines()
    side_by_side = element("div", _made(report), _size_against_quality(report), class_="grid")
    lines = [element("p", line) for line in judged]
    return "Summary", [headline(report), side_by_side, models, *lines]


def _made(report: Report) -> Markup:
    """How to make it again, where and when it was measured, and on what."""
    rows: list[tuple[str, Content]] = [("command", element("code", report.command))] if report.command else []
    measured = f"{report.count:,} samples: {report.data}" if report.count else "nothing: sizes and bits alone"
    rows += [("measured on", measured), ("date", report.made.date), ("processor", report.made.cpu)]
    rows += [("versions", versions_text(report.made.versions))]
    parts = [element("div", element("dt", name), element("dd", value)) for name, value in rows]
    return element("dl", parts, class_="facts")


def bits(report: Report) -> Section | None:
    """Charts with a row per layer: bars for weight bits, marks for activation bits."""
    figures = [_bits_of(variant) for variant in report.variants]
    text = "Layers from the input down. Bars are the bits of weights, and marks those of what the layer reads."
    return "Bits per layer", [element("p", text), element("div", figures, class_="grid")]


def _bits_of(variant: Variant) -> Markup:
    integers: list[Point] = []
    floats: list[Point] = []
    operands: list[Point] = []
    notes: dict[int, str] = {}
    for index, row in enumerate(variant.layers):
        runs = "floats" if row.integer is False else "integers"
        if row.weight_bits is None:
            notes[index] = "float"
        else:
            kept = floats if row.integer is False else integers
            title = f"{row.name}: {row.weight_bits}-bit weights, runs on {runs}"
            kept.append(Point(x=row.weight_bits, y=index, title=title))
        if row.activation_bits is not None:
            operands.append(Point(x=row.activation_bits, y=index, title=f"{row.name}: {row.activation_bits}-bit input"))
    known = any(row.integer is not None for row in variant.layers)
    series = [
        Series(name="weights, run on integers" if known else "weights", points=tuple(integers), bars=True),
        Series(name="weights, run in floats", points=tuple(floats), colour=3, bars=True),
        Series(name="activations", points=tuple(operands), colour=1),
    ]
    most = max((p.x for s in series for p in s.points), default=8)
    axis = Axis(label="bits", low=0, high=max(8.0, most) * 1.04, whole=True)
    names = [row.name for row in variant.layers]
    drawn = row_chart(f"Bits of each layer in {variant.name}", names, series, axis, notes=notes)
    return figure(variant.name, drawn, series, always=True)


def errors(report: Report) -> Section | None:
    """A chart of the error accumulated up to each layer."""
    names = list(
        dict.fromkeys(row.name for v in report.variants for row in v.layers if row.accumulated_sqnr_db is not None)
    )
    series = [_accumulated(variant, index, names) for index, variant in enumerate(report.variants)]
    series = [s for s in series if s.points]
    if not series:
        return None
    axis = Axis.over("SQNR, dB", [p.x for s in series for p in s.points])
    drawn = row_chart("Signal-to-noise ratio after each layer", names, series, axis)
    text = "Signal over quantization noise in the result of each layer, errors of all layers before it included."
    return "Error along the network", [
        element("p", text),
        figure("Farther right is closer to the float model", drawn, series),
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


def ranges(report: Report) -> Section | None:
    """Histograms of what the layers with the largest errors read, with the range of its grid."""
    parts: list[Content] = []
    for variant in report.variants:
        figures = [
            figure(f"{o.layer}: {spanned(o)}, {_share(o.lost)} of the values outside", range_chart(o), ())
            for o in variant.operands
        ]
        if figures:
            drawn = element("div", figures, class_="grid")
            parts.append(details(variant.name, drawn, unfolded=not parts) if len(report.variants) > 1 else drawn)
    if not parts:
        return None
    text = (
        "What the layers with the largest errors of their own read, on a logarithmic scale. Lines are the ends of the "
        "grid; grey values are clipped to them."
    )
    return "Chosen ranges", [element("p", text), *parts]


def _share(value: float) -> str:
    return "none" if value == 0 else f"{100 * value:.2g} %" if value >= 1e-4 else "under 0.01 %"


def whatif(report: Report) -> Section | None:
    """Tables of the predicted dB and the bytes of some layers at other bits."""
    tables = []
    for variant in report.variants:
        widths = sorted({c.bits for a in variant.alternatives for c in a.choices})
        rows = []
        for alternative in variant.alternatives:
            found = {choice.bits: choice for choice in alternative.choices}
            cells = [
                "-"
                if k not in found
                else f"{found[k].sqnr_db:.1f} dB, {found[k].nbytes:,} B" + (" *" if k == alternative.bits else "")
                for k in widths
            ]
            rows.append((alternative.layer, *cells))
        if rows:
            columns = ("layer", *(f"{k} bits" for k in widths))
            tables.append(
                table(f"Weights of {variant.name} at other bits; * is what it has", columns, rows, stacked=True)
            )
    if not tables:
        return None
    text = (
        "The predicted signal over error of a layer alone and the bytes of its weight, for the layers with the largest "
        "errors and those with the most bytes. To see what a change does to the outputs: "
    )
    example = element("code", "qgraph whatif MODEL PLAN.json --set 'LAYER:weights=3' --data PATH")
    return "What if", [element("p", text, example), *tables]


def layers(report: Report) -> Section | None:
    """Tables with every number about every layer."""
    decibels = ("predicted dB", "measured dB", "accumulated dB")
    columns = ("layer", "op", "runs on", "weights", "activations", "bytes", *decibels)
    tables = [
        details(
            f"Layers of {variant.name}",
            table(f"Layers of {variant.name}", columns, [_layer_row(row) for row in variant.layers], left=3),
            unfolded=len(report.variants) == 1,
        )
        for variant in report.variants
    ]
    return "Layers", tables


def kept(report: Report) -> Section | None:
    """A table of what stayed in floating point, and why."""
    rows = [(v.name, k.name, k.why) for v in report.variants for k in v.kept_float]
    rows += [
        (v.name, row.name, f"{row.weight_bits}-bit weights, run in floats: {row.why_float}")
        for v in report.variants
        for row in v.layers
        if row.integer is False and row.weight_bits is not None and row.why_float
    ]
    if not rows:
        return None
    return "Kept in floating point", table("What does not run on integers", ("model", "layer", "why"), rows, left=3)


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
    ranges,
    whatif,
    distilled,
    layers,
    kept,
)


def _size_against_quality(report: Report) -> Markup | None:
    """A chart of top-1 accuracy over size, or of SQNR without labels; None for a single point."""
    labelled = report.float_top1 is not None
    points = []
    for variant in report.variants:
        quality = variant.quality
        value = None if quality is None else quality.top1 if labelled else quality.sqnr_db
        if value is not None and math.isfinite(value):
            points.append((variant.name, variant.nbytes / MEGABYTE, value))
    if report.float_top1 is not None:
        points.append(("float", report.nbytes / MEGABYTE, report.float_top1))
    if len(points) < 2:
        return None
    unit = "top-1 accuracy, %" if labelled else "SQNR of the outputs, dB"
    series = [
        Series(name=name, points=(Point(x=x, y=y, title=f"{name}: {x:.3f} MB, {y:.2f}"),), colour=index)
        for index, (name, x, y) in enumerate(points)
    ]
    x = Axis.over("MB (2^20 bytes)", [p[1] for p in points], zero=True)
    y = Axis.over(unit, [p[2] for p in points], most=100.0 if labelled else math.inf)
    return figure("Up and to the left is better", chart(f"{unit} against size", series, x, y), series)


def _float_row(report: Report) -> Sequence[Content]:
    return ("float", f"{report.nbytes:,}", "100%", "32", number(report.float_top1, 2), "-", "-", "1.00")


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
        "-" if row.integer is None else "integers" if row.integer else "floats",
        "float" if row.weight_bits is None else row.weight_bits,
        "float" if row.activation_bits is None else row.activation_bits,
        "-" if row.weight_bytes is None else f"{row.weight_bytes:,}",
        number(row.predicted_sqnr_db, 1),
        number(row.measured_sqnr_db, 1),
        number(row.accumulated_sqnr_db, 1),
    )


def _accumulated(variant: Variant, index: int, names: Sequence[str]) -> Series:
    known = {row.name: row.accumulated_sqnr_db for row in variant.layers}
    found = [(i, name, known.get(name)) for i, name in enumerate(names)]
    points = [
        Point(x=v, y=i, title=f"{name}: {v:.1f} dB") for i, name, v in found if v is not None and math.isfinite(v)
    ]
    return Series(name=variant.name, points=tuple(points), colour=index, line=True)
