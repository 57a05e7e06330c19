"""One run of the demo, whose collection the other tests use again."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from llama_index_refine.cli import app


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo writes: its collection into `qdrant`, its picture into `out`."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def first_run(folder: Path) -> Result:
    """The demo with the human labels on twelve queries, in a terminal of 80 columns without colour."""
    environment = {"OPENAI_API_KEY": None, "COLUMNS": "80", "NO_COLOR": "1"}
    arguments = ["demo", "--queries", "12", "--path", str(folder / "qdrant"), "--out", str(folder / "out")]
    return CliRunner().invoke(app, arguments, env=environment)
