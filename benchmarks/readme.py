"""Write the measured tables of benchmarks/results into README.md and docs.

A table stands between `<!-- results: NAME -->` and `<!-- end -->`, where NAME is that of a JSON file that a benchmark
wrote with --json. After `<!-- protocol: METHOD -->` stands what the method's paper says, and what is the default here,
from the registry of methods; after `<!-- papers: PAPER | NUMBER -->`, the table of that number as `benchmarks.papers`
prints it from what is kept. The picture of README is drawn from real.json. `--check` only says which pages are not up
to date.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.front_picture import drawn
from benchmarks.papers.cells import Cells
from qgraph.plan import registry
from qgraph.plan.request import choose_recipe
from qgraph.plan.settings import value_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{page}.md" for page in ("papers", "certify", "cluster", "latency", "portable")),
    *(page for part in ("methods", "results") for page in sorted((ROOT / "docs" / part).glob("*.md"))),
)
PICTURE = ROOT / "docs" / "assets" / "networks.svg"
_BLOCK = re.compile(r"(<!-- (?P<kind>results|protocol|papers): (?P<name>[^>\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Path = RESULTS) -> str:
    """`text` with every marked block replaced by the latest table."""

    def table(found: re.Match[str]) -> str:
        name, rest = found["name"], ""
        if found["kind"] == "papers":
            rows, rest = of_paper(*(part.strip() for part in name.split("|", 1)))
        else:
            rows = protocol(name) if found["kind"] == "protocol" else _rows(results, name)
        return f"{found[1]}{markdown(rows)}{rest}\n{found[4]}"

    return _BLOCK.sub(table, text)


def of_paper(paper: str, number: str) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The rows of a paper's table beside what is kept, and the note below it."""
    tables = importlib.import_module(f"benchmarks.papers.{paper}").tables(Cells.of(paper, quick=True))
    table = next(table for table in tables if table.number == number)
    return table.rows(), f"\n\n{table.note}"


def protocol(method: str) -> list[dict[str, Any]]:
    """What the paper of a method says, what is the default here, and why."""
    rows = []
    for row in registry.find(method).paper:
        rows.append(
            {
                "": f"`--set {row.name}`" if "." in row.name else f"`--{row.name.replace('_', '-')}`",
                "the paper": _said(row.value),
                "here by default": _said(_default(method, row.name)),
                "why": row.why,
            }
        )
    return rows


def _default(method: str, name: str) -> Any:
    if "." in name:
        return value_of(name)
    return getattr(choose_recipe(method, True), name)


def _said(value: Any) -> str:
    if value is None:
        return "chosen"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with numbers aligned to the right; floats have the digits that `benchmarks.common.report` prints."""
    names = list(rows[0])
    numeric = [all(isinstance(row[n], (int, float, type(None))) for row in rows) for n in names]
    lines = [names, ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(row[name]) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(results: Path, name: str) -> list[dict[str, Any]]:
    path = results / f"{name}.json"
    if not path.exists():
        sys.exit(f"a page shows results '{name}', but there is no {path}: run the benchmark that writes it with --json")
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not up to date")
    given = parser.parse_args()
    before = {page: page.read_text(encoding="utf-8") for page in PAGES}
    after = {page: filled(text) for page, text in before.items()}
    before[PICTURE] = PICTURE.read_text(encoding="utf-8") if PICTURE.exists() else ""
    after[PICTURE] = drawn(_rows(RESULTS, "real"))
    stale = [page for page in before if after[page] != before[page]]
    if given.check:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"not up to date: {names}; run python -m benchmarks.readme" if stale else 0)
    for page in stale:
        page.write_text(after[page], encoding="utf-8")


if __name__ == "__main__":
    main()
