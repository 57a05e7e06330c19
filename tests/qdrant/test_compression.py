"""Near servers are asked for answers as they are, over REST; whoever else shares the client is left alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index_refine import RefinedRetriever
from llama_index_refine.qdrant.clients import as_it_is, is_near
from tests.places import SIZE, LabelGrader, points, question

context_headers = pytest.importorskip("qdrant_client.context_headers")


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("http://localhost:6333", True),
        ("http://127.0.0.1:6333", True),
        ("http://[::1]:6333", True),
        ("http://10.1.2.3:6333/prefix", True),
        ("http://192.168.0.7:6333", True),
        ("http://qdrant:6333", True),
        ("https://qdrant.default.svc:6333", True),
        ("http://vectors.internal", True),
        ("https://0123.eu-central.aws.cloud.example.io:6333", False),
        ("http://8.8.8.8:6333", False),
        ("http://local.example.com", False),
    ],
)
def test_what_is_near_is_in_this_machine_or_a_private_network(address, near):
    assert is_near(address) is near


def encoding_of(client) -> str | None:
    with as_it_is(client):
        return context_headers.get_context_headers().get("Accept-Encoding")


def test_only_near_servers_over_rest_are_asked():
    rest = {"_prefer_grpc": False}
    assert encoding_of(SimpleNamespace(_client=SimpleNamespace(**rest, rest_uri="http://127.0.0.1:6333"))) == "identity"
    assert encoding_of(SimpleNamespace(_client=SimpleNamespace(**rest, rest_uri="https://far.example.com"))) is None
    grpc = QdrantClient(url="http://127.0.0.1:6333", prefer_grpc=True, check_compatibility=False)
    assert encoding_of(grpc) is None
    grpc.close()
    assert encoding_of(QdrantClient(":memory:")) is None
    assert context_headers.get_context_headers() == {}


async def test_a_refined_query_has_its_answers_uncompressed(qdrant_server):
    qdrant_server.storage.create_collection("c", models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    qdrant_server.storage.upsert("c", points())
    clients = {
        kind: kind(url=qdrant_server.url, check_compatibility=False) for kind in (QdrantClient, AsyncQdrantClient)
    }
    for kind, client in clients.items():
        qdrant_server.encodings.clear()
        refined = RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=LabelGrader())
        qdrant_server.encodings.clear()
        refinement = refined.refine(question(0)) if kind is QdrantClient else await refined.arefine(question(0))
        assert refinement.refined
        assert set(qdrant_server.encodings) == {"identity"}
    clients[QdrantClient].get_collection("c")
    assert "gzip" in qdrant_server.encodings[-1]
