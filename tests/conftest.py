"""Real counterparts that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llama_index_refine import RefinedRetriever, Refinement
from tests.chat_server import ChatServer
from tests.places import PLACES, Place, open_place, running_server
from tests.qdrant_server import QdrantServer
from tests.small_index import QUERY, BrokenGrader, SubjectGrader, make_index


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same backgrounds in every run: Qdrant's local mode samples by numpy's global generator."""
    np.random.seed(0)


@pytest.fixture(scope="session")
def refinement() -> Refinement:
    """How a query for owls went on the small index."""
    return RefinedRetriever.from_index(make_index(), grader=SubjectGrader("owls"), similarity_top_k=5).refine(QUERY)


@pytest.fixture(scope="session")
def unrefined() -> Refinement:
    """The same with a teacher that fails."""
    return RefinedRetriever.from_index(make_index(), grader=BrokenGrader(), similarity_top_k=5).refine(QUERY)


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
