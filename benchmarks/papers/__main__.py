"""Print the tables of a paper beside what is measured here: the paper's own figures, ours, and on how many images.

    python -m benchmarks.papers --paper aciq|zeroq|qrater|lsqplus [--quick] [--only TEXT]

Figures are kept in benchmarks/results as they are measured, and measured only where they are missing; with `--quick`,
nothing is measured. MobileNetV2 and its photographs come from the folder of `benchmarks.real` ($QGRAPH_REAL). What is
not here, and why, is in docs/papers.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from rich.console import Console
from rich.table import Table as Lines

from benchmarks.papers.cells import Cells

PAPERS = ("aciq", "zeroq", "qrater", "lsqplus")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", choices=PAPERS, required=True)
    parser.add_argument("--quick", action="store_true", help="measure nothing: print what is kept")
    parser.add_argument("--only", metavar="TEXT", default="", help="only tables whose number or title has TEXT")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in importlib.import_module(f"benchmarks.papers.{given.paper}").tables(
        Cells.of(given.paper, quick=given.quick)
    ):
        if given.only.lower() not in f"{table.number} {table.title}".lower():
            continue
        lines = Lines(title=f"{table.number}: {table.title}", title_justify="left")
        rows = table.rows()
        for name in rows[0]:
            lines.add_column(name)
        for row in rows:
            lines.add_row(*("-" if value is None else str(value) for value in row.values()))
        console.print(lines, f"{table.note}\n", highlight=False)


if __name__ == "__main__":
    main()
