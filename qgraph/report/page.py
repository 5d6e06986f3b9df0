"""The report as one HTML file without scripts or external files, for phones, light and dark, and screen readers.

The numbers of every chart are in a table as well; every table has a caption, and scrolls by keyboard if it is too wide.
"""

from __future__ import annotations

from importlib.resources import files

from qgraph.report.contents import Report
from qgraph.report.html import Content, Markup, element
from qgraph.report.sections import SECTIONS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


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
    what = "One quantized form" if count == 1 else f"{count} quantized forms"
    measured = f"measured on {report.count:,} samples: {report.data}" if report.count else "sizes and bits alone"
    return element("p", f"{what} of {report.source}, {measured}.")


def _section(name: str, content: Content) -> Markup:
    anchor = _anchor(name)
    heading = element("h2", name, id=f"{anchor}-heading")
    return element("section", heading, content, id=anchor, aria_labelledby=f"{anchor}-heading")


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
