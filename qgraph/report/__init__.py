"""A report on quantized forms of one network, as one self-contained HTML file."""

from qgraph.report.contents import Report
from qgraph.report.gather import report_of, report_on
from qgraph.report.page import render

__all__ = ["Report", "render", "report_of", "report_on"]
