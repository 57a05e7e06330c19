"""Real counterparts that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from llama_index_refine import RefinedRetriever, Refinement
from llama_index_refine.commands.cli import app
from tests.chat_server import ChatServer
from tests.places import PLACES, Place, open_place, running_server
from tests.qdrant_server import QdrantServer
from tests.small_index import QUERY, BrokenGrader, SubjectGrader, make_index
from tests.toy_data import write_folder

TWO_ROUNDS = {"similarity_top_k": 5, "rounds": 2, "early_stop": False}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same backgrounds in every run: Qdrant's local mode samples by numpy's global generator."""
    np.random.seed(0)


@pytest.fixture(scope="session")
def refinement() -> Refinement:
    """How a query for owls went on the small index."""
    return RefinedRetriever.from_index(make_index(), grader=SubjectGrader("owls"), **TWO_ROUNDS).refine(QUERY)


@pytest.fixture(scope="session")
def unrefined() -> Refinement:
    """The same with a teacher that fails."""
    return RefinedRetriever.from_index(make_index(), grader=BrokenGrader(), **TWO_ROUNDS).refine(QUERY)


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    """A chat completions server of its own for each test."""
    server = ChatServer().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def qdrant_address() -> Iterator[tuple[str, int]]:
    """A real server's URL and gRPC port."""
    with running_server() as address:
        yield address


@pytest.fixture(params=PLACES)
def place(request, tmp_path) -> Iterator[Place]:
    """Each place where a collection can live, in turn."""
    real = request.param.startswith("server")
    address = request.getfixturevalue("qdrant_address") if real else ("", 0)
    with open_place(request.param, tmp_path, address) as opened:
        yield opened


@pytest.fixture
def qdrant_server() -> Iterator[QdrantServer]:
    """Qdrant's REST interface on loopback, whose calls can be made to fail."""
    server = QdrantServer().start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "grouped", groups=True)


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
