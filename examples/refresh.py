"""Run the notebooks and keep their outputs: python examples/refresh.py [NOTEBOOK ...]

What goes to the error stream (progress bars, warnings of libraries) is not kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def run(path: Path) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom in a kernel of its own.

    :param path: the notebook.
    :return: it, with its outputs.
    """
    book = nbformat.read(path, as_version=4)
    options = {"timeout": 300, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(book, resources={"metadata": {"path": str(HERE)}}, **options).execute()
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return book


def main() -> None:
    """Refresh the notebooks named, or all."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(run(path), path)
        print(path.name)


if __name__ == "__main__":
    main()
