"""Make pages of the notebooks, and a gallery of them, while MkDocs builds: text, code and the pictures they hold."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
MARKER = "<!-- gallery -->"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A notebook as Markdown, with the pictures that it shows by name."""

    name: str
    title: str
    summary: str
    markdown: str
    pictures: dict[str, bytes]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every notebook, and its pictures."""
    for page in pages():
        files.append(File.generated(config, f"notebooks/{page.name}.md", content=page.markdown))
        for name, content in page.pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the gallery in place of the marker, and with links to notebooks leading to their pages."""
    markdown = re.sub(r"\.\./notebooks/(\w+)\.ipynb", r"notebooks/\1.md", markdown)
    return markdown.replace(MARKER, "\n".join(map(card, pages()))) if MARKER in markdown else markdown


def pages() -> list[Page]:
    """Every notebook, by name."""
    return [read(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))]


def read(path: Path) -> Page:
    """One notebook as a page."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            parts.append(f"```python\n{source}\n```")
        parts += [shown(output, path.stem, pictures) for output in cell.get("outputs", [])]
    title, summary, *_ = re.split(r"\n\s*\n", "".join(cells[0]["source"]).strip())
    run = f'To move its sliders, in a checkout: `pip install ".[notebooks]"`, then open `notebooks/{path.name}`.'
    return Page(
        name=path.stem,
        title=title.lstrip("# "),
        summary=" ".join(summary.split()),
        markdown="\n\n".join(part for part in parts if part) + f"\n\n{run}\n",
        pictures=pictures,
    )


def shown(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    """What a cell shows: a picture, or text."""
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}-{len(pictures) + 1}.png"
        pictures[file] = base64.b64decode("".join(data["image/png"]))
        return f"![What the cell above draws]({file})"
    text = "".join(data.get("text/plain", output.get("text", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() and "Figure" not in text[:12] else ""


def card(page: Page) -> str:
    """The notebook in the gallery: its first picture, its title and its first paragraph."""
    summary = re.sub(r"\$+[^$]*\$+", "", page.summary)
    picture = next(iter(page.pictures), "")
    drawn = f"[![{page.title}](notebooks/{picture})](notebooks/{page.name}.md)\n\n" if picture else ""
    return f"## [{page.title}](notebooks/{page.name}.md)\n\n{drawn}{summary}\n"
