"""Keys and tokens: reading is all that a retriever needs. On Qdrant's executable, which has keys of its own here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from llama_index_refine import RefinedRetriever
from tests.places import SIZE, LabelGrader, points, question
from tests.qdrant_process import BINARY, QdrantProcess

pytestmark = [
    pytest.mark.skipif(BINARY is None, reason="needs an executable that QDRANT_BINARY names"),
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection"),
]
WRITING, READING = "a-key-that-writes", "a-key-that-reads"
KEYS = {
    "QDRANT__SERVICE__API_KEY": WRITING,
    "QDRANT__SERVICE__READ_ONLY_API_KEY": READING,
    "QDRANT__SERVICE__JWT_RBAC": "true",
}


def token(**claims) -> str:
    def part(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    body = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    return (body + b"." + part(hmac.new(WRITING.encode(), body, hashlib.sha256).digest())).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    process = QdrantProcess(tmp_path_factory.mktemp("guarded"), own=KEYS)
    client = client_of(process, WRITING)
    for name in ("c", "other"):
        client.create_collection(name, models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
        client.upsert(name, points(), wait=True)
    yield process
    process.stop()


def client_of(process, key, over_grpc: bool = False) -> QdrantClient:
    return QdrantClient(
        url=process.url, grpc_port=process.grpc_port, prefer_grpc=over_grpc, api_key=key, check_compatibility=False
    )


def retriever(client, **kwargs) -> RefinedRetriever:
    return RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=LabelGrader(), **kwargs)


@pytest.mark.parametrize("over_grpc", [False, True], ids=["rest", "grpc"])
@pytest.mark.parametrize("key", [READING, token(access=[{"collection": "c", "access": "r"}]), token(access="r")])
def test_reading_is_enough(guarded, key, over_grpc):
    refined = retriever(client_of(guarded, key, over_grpc), on_error="raise")
    assert all(refined.refine(question(topic)).refined for topic in range(2))


def test_a_key_that_does_not_fit_is_refused(guarded):
    for key in (None, "another", token(access=[{"collection": "other", "access": "r"}])):
        with pytest.raises(UnexpectedResponse, match=r"401|403"):
            retriever(client_of(guarded, key)).retrieve(question(0))


@pytest.mark.parametrize("over_grpc", [False, True], ids=["rest", "grpc"])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("another", "Qdrant answers 401 (Invalid API key or JWT): give the client the api_key of this server"),
        (token(access="r", exp=1), "Qdrant answers 403 (ExpiredSignature): make the client with a token that has not"),
        (
            token(access=[{"collection": "other", "access": "r"}]),
            "Qdrant answers 403 (Forbidden: Access to collection c is required): use a key or a token that may read",
        ),
    ],
)
def test_a_key_that_is_withdrawn_after_the_first_search_leaves_its_nodes(guarded, key, said, over_grpc):
    client, withdrawn = client_of(guarded, READING, over_grpc), client_of(guarded, key, over_grpc)

    class Withdrawing(LabelGrader):
        def grade(self, query, nodes):
            refined._collection.store._client._client = withdrawn._client
            return super().grade(query, nodes)

    refined = RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=Withdrawing(), rounds=1)
    refinement = refined.refine(question(0))
    assert len(refinement.nodes) == 10
    assert f"the second search failed: {said}" in refinement.reason
    assert key not in refinement.reason
