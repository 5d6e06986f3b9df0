"""Execute the notebooks in place: `python notebooks/render.py [NAME.ipynb ...]`.

Outputs are committed, so that each notebook can be read as a page without a kernel, except those of cells tagged
`interactive`, which need one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; raises CellExecutionError when a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(HERE)}})
    client.comm_open_handlers = {}  # drop the output of sliders, whose handler can make the client miss a reply
    client.execute()
    return notebook


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what changes between runs, and without the outputs of interactive cells."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            if "interactive" in cell.metadata.get("tags", []):
                cell.outputs = []
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    return notebook


def main(names: list[str]) -> None:
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(stripped(executed(path)), path)


if __name__ == "__main__":
    main(sys.argv[1:])
