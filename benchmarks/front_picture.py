"""Draw the picture of README: size and time of real networks, quantized with defaults, beside their float files.

`python -m benchmarks.readme` writes it from benchmarks/results/real.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.real import QGRAPH, each, known_settings

WIDTH, NAMES, RIGHT, TOP, STEP = 760, 300, 110, 64, 34
MOST = 12
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1c1c1c }
.faint { fill: #595959 } .head { font-size: 17px; font-weight: 600 } .rule { stroke: #cfcfcf }
.size { fill: #1d4ed8 } .time { fill: #c2410c } .paper { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #ececec } .faint { fill: #b3b3b3 } .rule { stroke: #4a4d55 }
  .size { fill: #8ab4ff } .time { fill: #ffa366 } .paper { fill: #16181c }
}
"""


def drawn(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG with one row per network, the smallest first: bars of size and latency relative to the float file."""
    settings = each(known_settings(None), {r["network"] for r in rows})
    shown = [r for r in rows if r["tool"] == QGRAPH and not r["problem"] and r["size"] and r["latency"]]
    shown = [r for r in shown if not settings.get(r["network"], {}).get("options")]
    shown = sorted(shown, key=lambda r: r["size"] * r["latency"])[:MOST]
    height = TOP + STEP * len(shown) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Size and time of quantized networks, relative to their float files</title>",
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height}" rx="6" class="paper"/>',
        '<text x="16" y="26" class="head">Quantized to 8 bits without a setting, beside float</text>',
        *_scale(height),
        *(part for index, row in enumerate(shown) for part in _row(index, row, settings)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def across(value: float) -> float:
    """The position of a share of the float file."""
    return round(NAMES + value * (WIDTH - NAMES - RIGHT), 1)


def _scale(height: int) -> Iterator[str]:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = across(share)
        yield f'<line x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{height - 28}" class="rule"/>'
        label = "float" if share == 1 else f"{share:.0%}"
        yield f'<text x="{x}" y="{height - 10}" text-anchor="middle" class="faint">{label}</text>'
    x = across(0)
    yield f'<text x="{x}" y="{TOP - 14}" class="size" font-weight="600">size</text>'
    yield f'<text x="{x + 42}" y="{TOP - 14}" class="time" font-weight="600">time of a sample</text>'
    yield f'<text x="{WIDTH - 16}" y="{TOP - 14}" text-anchor="end" class="faint">worst output</text>'


def _row(index: int, row: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    y, name = TOP + STEP * index, row["network"]
    about = settings.get(name, {}).get("about", "")
    yield f'<text x="16" y="{y + 19}">{escape(name)} <tspan class="faint">{escape(about)}</tspan></text>'
    for kind, offset in (("size", 4), ("latency", 16)):
        css = "size" if kind == "size" else "time"
        width = round(across(min(row[kind], 1.08)) - across(0), 1)
        yield f'<rect x="{across(0)}" y="{y + offset}" width="{width}" height="10" rx="1.5" class="{css}"/>'
    decibels = "exact" if row["worst dB"] is None else f"{row['worst dB']:.0f} dB"
    yield f'<text x="{WIDTH - 16}" y="{y + 19}" text-anchor="end">{decibels}</text>'
