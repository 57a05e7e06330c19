"""Where a collection can live, and what the tests put into it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from qdrant_client import QdrantClient, models

from llama_index_refine import BaseGrader
from llama_index_refine.qdrant.edge import EdgeClient
from tests.qdrant_grpc_server import QdrantGrpcServer
from tests.qdrant_process import BINARY, QdrantProcess
from tests.qdrant_server import QdrantServer

# "disk" is "memory" with every write kept, which is slow: the tests that are about it name it.
PLACES = ("memory", "edge", "rest", "grpc", "server", "server-grpc")
IMAGE = os.environ.get("QDRANT_IMAGE", "qdrant/qdrant:latest")
SIZE, TOPICS, EACH = 16, 5, 40


@dataclass
class Place:
    """A client to read with, one to write with, and the server where it is one of ours."""

    kind: str
    client: Any
    writer: Any
    server: QdrantServer | QdrantGrpcServer | None = None
    made: list[str] = field(default_factory=list)

    def needs_a_client(self, version: str, kinds: str, what: str) -> None:
        """Skip the test where an older qdrant-client, of which these places are made, has a mistake of its own."""
        have = importlib.metadata.version("qdrant-client")
        if self.kind in kinds.split() and tuple(map(int, have.split(".")[:2])) < tuple(map(int, version.split("."))):
            pytest.skip(f"qdrant-client {have} {what}")

    def create(self, vectors: Any, **config: Any) -> str:
        name = f"c{uuid.uuid4().hex[:12]}"
        self.writer.create_collection(name, vectors, **config)
        self.made.append(name)
        return name

    def write(self, name: str, points: Sequence[models.PointStruct]) -> None:
        self.writer.upsert(name, list(points), wait=True)

    def close(self) -> None:
        for name in self.made:
            self.writer.delete_collection(name)
        self.client.close()


@contextmanager
def open_place(kind: str, folder: Path, address: tuple[str, int]) -> Iterator[Place]:
    server: QdrantServer | QdrantGrpcServer | None = None
    if kind == "memory":
        client: Any = QdrantClient(":memory:")
    elif kind == "disk":
        client = QdrantClient(path=str(folder / "disk"))
    elif kind == "edge":
        client = EdgeClient(folder / "edge")
    elif kind == "rest":
        server = QdrantServer().start()
        client = QdrantClient(url=server.url, check_compatibility=False)
    elif kind == "grpc":
        server = QdrantGrpcServer().start()
        client = QdrantClient(
            url="http://127.0.0.1", grpc_port=server.port, prefer_grpc=True, check_compatibility=False
        )
    else:
        url, grpc_port = address
        client = QdrantClient(url=url, grpc_port=grpc_port, prefer_grpc=kind == "server-grpc", timeout=30)
    place = Place(kind, client, server.storage if server else client, server)
    try:
        yield place
    finally:
        place.close()
        if server:
            server.stop()


@cache
def why_no_docker() -> str | None:
    """Say why containers cannot be started here, None where they can."""
    if shutil.which("docker") is None:
        return "needs Docker, which is not installed"
    ran = subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False)
    return None if ran.returncode == 0 else "needs a Docker daemon that runs, and none answers"


@contextmanager
def running_server() -> Iterator[tuple[str, int]]:
    """A server's URL and gRPC port: of the one that QDRANT_URL names, of a process of QDRANT_BINARY, or a container's.

    Skips where there is none.
    """
    if url := os.environ.get("QDRANT_URL"):
        yield url, int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
        return
    if BINARY:
        with tempfile.TemporaryDirectory() as folder:
            process = QdrantProcess(Path(folder))
            try:
                yield process.url, process.grpc_port
            finally:
                process.stop()
        return
    if reason := why_no_docker():
        pytest.skip(f"a real server {reason}; QDRANT_URL may name one that runs, QDRANT_BINARY an executable")
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import HttpWaitStrategy

    container = DockerContainer(IMAGE).with_exposed_ports(6333, 6334).waiting_for(HttpWaitStrategy(6333, "/readyz"))
    with container as started:
        host = started.get_container_host_ip()
        yield f"http://{host}:{started.get_exposed_port(6333)}", int(started.get_exposed_port(6334))


class LabelGrader(BaseGrader):
    """A teacher that knows: a node is relevant to the query that is its topic's name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def grade(self, query, nodes):
        self.seen += nodes
        return [float(node.metadata["topic"] == query.query_str) for node in nodes]


def vectors(positive: bool = False) -> np.ndarray:
    """(TOPICS * EACH, SIZE): the document of row i is about topic i % TOPICS."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(TOPICS, SIZE))
    rows = np.tile(centres, (EACH, 1)) + 1.2 * rng.normal(size=(TOPICS * EACH, SIZE))
    return np.clip(rows * 30 + 128, 0, 255).round() if positive else rows


def question(topic: int, positive: bool = False) -> QueryBundle:
    """A query that points between its topic and the next one."""
    rows = vectors(positive)
    vector = 0.55 * rows[topic::TOPICS].mean(0) + 0.45 * rows[(topic + 1) % TOPICS :: TOPICS].mean(0)
    return QueryBundle(str(topic), embedding=vector.tolist())


def points(name: str = "", positive: bool = False, uuids: bool = False, sparse: str = "") -> list[models.PointStruct]:
    """The documents, with plain payloads."""
    rows = vectors(positive)
    made = []
    for at, row in enumerate(rows.tolist()):
        vector: Any = {name: row} if name else row
        if sparse:
            words = models.SparseVector(indices=[at % TOPICS, 100 + at], values=[1.0, 0.5])
            vector = {name: row, sparse: words}
        payload = {
            "topic": str(at % TOPICS),
            "number": at,
            "tenant": "ab"[at // TOPICS % 2],
            "meta": {"abstract": f"document {at} about {at % TOPICS}", "year": 1990 + at % 30},
        }
        point_id = str(uuid.UUID(int=at + 1)) if uuids else at
        made.append(models.PointStruct(id=point_id, vector=vector, payload=payload))
    return made


def matrices() -> list[np.ndarray]:
    """A multivector for each document of the first half: its row of `vectors` and up to four that say nothing."""
    rng = np.random.default_rng(8)
    rows = vectors()[: TOPICS * EACH // 2]
    return [np.vstack([row, rng.normal(size=(rng.integers(1, 5), SIZE))]) for row in rows]


def with_matrices(name: str, dense: str = "") -> list[models.PointStruct]:
    """Documents with a multivector, and beside it with a dense vector where that has a name."""
    made = points(dense)[: TOPICS * EACH // 2]
    for point, matrix in zip(made, matrices(), strict=True):
        own = {name: matrix.tolist()} if name else matrix.tolist()
        point.vector = {**point.vector, **own} if dense else own
    return made


def matrix_query(texts: list[str]) -> list[list[list[float]]]:
    """The matrix of a query that is a number: a token that points between its topic and the next, and one elsewhere."""
    elsewhere = np.random.default_rng(9).normal(size=SIZE).tolist()
    return [[question(int(text)).embedding or [], elsewhere] for text in texts]


def sparse_query(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    """The sparse vector of a query that is a number: the word of that number."""
    return [[int(text)] if text.isdecimal() else [] for text in texts], [[1.0] * text.isdecimal() for text in texts]


def hits(nodes: Sequence[Any], topic: int) -> int:
    return sum(entry.node.metadata["topic"] == str(topic) for entry in nodes)
