"""What the reader is told when Qdrant fails: one sentence with the step, Qdrant's words, and what to do."""

from __future__ import annotations

import logging
import socket
import ssl

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from llama_index_refine import RefinedRetriever
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.qdrant.edge import EdgeClient
from llama_index_refine.qdrant.errors import in_a_sentence
from tests.faults import Fault
from tests.places import SIZE, LabelGrader, points, question
from tests.qdrant_grpc_server import QdrantGrpcServer
from tests.qdrant_server import QdrantServer

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
RAW = ("Unexpected Response", "Raw response", "b'", "RPC that terminated", "debug_error_string", "StatusCode", "\\n")
# What Qdrant 1.18 says, with which status over REST and gRPC, and a part of what the reader is told to do.
SAID = {
    "limit": (
        400,
        grpc.StatusCode.INVALID_ARGUMENT,
        'Bad request: Limit exceeded 30 > 10 for "limit". Help: Reduce the "limit" parameter to or below 10.',
        "raise this limit of the collection's strict mode",
    ),
    "conditions": (
        400,
        grpc.StatusCode.INVALID_ARGUMENT,
        "Bad request: Filter condition limit reached (3 > 2). Help: Reduce the amount of conditions of your filter.",
        "raise this limit of the collection's strict mode",
    ),
    "exact": (
        400,
        grpc.StatusCode.INVALID_ARGUMENT,
        "Bad request: Exact search disabled!. Help: Set exact=false.",
        "leave out search_params.exact",
    ),
    "index": (
        400,
        grpc.StatusCode.INVALID_ARGUMENT,
        'Bad request: Index required but not found for "a" of one of the following types: [integer]. Help: Create an '
        "index for this key or use a different filter.",
        "create a payload index",
    ),
    "dimension": (
        400,
        grpc.StatusCode.INVALID_ARGUMENT,
        "Wrong input: Vector dimension error: expected dim: 8, got 16",
        "was replaced meanwhile",
    ),
    "no key": (
        401,
        grpc.StatusCode.UNAUTHENTICATED,
        "Must provide an API key or an Authorization bearer token",
        "give the client the api_key",
    ),
    "other collection": (
        403,
        grpc.StatusCode.PERMISSION_DENIED,
        "Forbidden: Access to collection c is required",
        "a token that may read this collection",
    ),
    "expired": (403, grpc.StatusCode.PERMISSION_DENIED, "ExpiredSignature", "that has not expired"),
    "gone": (404, grpc.StatusCode.NOT_FOUND, "Not found: Collection `c` doesn't exist!", "deleted or renamed"),
    "rate": (
        429,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "Rate limiting exceeded: Read rate limit exceeded, request larger than rate limiter capacity, please try to "
        "split your request",
        "raise the collection's read_rate_limit",
    ),
    "replica": (
        500,
        grpc.StatusCode.INTERNAL,
        "Service internal error: 1 of 3 read operations failed:\n  Service internal error: Tonic status error",
        "a node is down and consistency needs every replica",
    ),
}


def is_a_sentence(text: str) -> bool:
    return "\n" not in text and ". " not in text and not text.endswith(".") and not any(raw in text for raw in RAW)


def retriever(client, grader=None, **kwargs) -> RefinedRetriever:
    options = {"grader": grader or LabelGrader(), "rounds": 2, "early_stop": False, **kwargs}
    return RefinedRetriever.from_collection(client, "c", "meta.abstract", **options)


class Interrupting(LabelGrader):
    """A teacher during whose work something happens."""

    def __init__(self, happens) -> None:
        super().__init__()
        self.happens = happens

    def grade(self, query, nodes):
        self.happens()
        return super().grade(query, nodes)


@pytest.fixture(params=["rest", "grpc"])
def server(request):
    server = QdrantServer().start() if request.param == "rest" else QdrantGrpcServer().start()
    server.storage.create_collection("c", COSINE)
    server.storage.upsert("c", points())
    yield server
    server.stop()


def client_of(server, kind=QdrantClient):
    if isinstance(server, QdrantServer):
        return kind(url=server.url, check_compatibility=False, timeout=1)
    where = {"url": "http://127.0.0.1", "grpc_port": server.port, "prefer_grpc": True}
    return kind(**where, check_compatibility=False, timeout=1)


def fault(server, case: str) -> Fault:
    http, rpc, said, _ = SAID[case]
    return Fault(status=http if isinstance(server, QdrantServer) else rpc, said=said)


@pytest.mark.parametrize("case", SAID)
def test_what_qdrant_says_after_the_first_search_is_one_sentence(server, case, caplog):
    server.faults["query", 3] = fault(server, case)
    with caplog.at_level(logging.WARNING):
        refinement = retriever(client_of(server), rounds=1).refine(question(0))
    assert refinement.reason.startswith("the second search failed: Qdrant answers ")
    assert str(SAID[case][0]) in refinement.reason
    assert SAID[case][2].split(". Help")[0].split("\n")[0].rstrip("!") in refinement.reason
    assert SAID[case][3] in refinement.reason
    assert is_a_sentence(refinement.reason)
    assert refinement.reason in caplog.text
    assert not any(raw in caplog.text for raw in RAW)


# What a first query of two rounds asks for a long list: search, background, ranking, fetch, search.
STEPS = {
    ("count", 1): "drawing the background failed",
    ("query", 2): "drawing the background failed",
    ("query", 3): "the ranking between rounds failed",
    ("query", 4): "fetching what is graded next failed",
    ("query", 5): "the second search failed",
}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: "-".join(map(str, step)))
async def test_the_step_is_named(server, step, caplog):
    for client in (client_of(server), client_of(server, AsyncQdrantClient)):
        server.calls.clear()
        server.faults[step] = fault(server, "no key")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            refinement = await retriever(client, LabelGrader(), similarity_top_k=90).arefine(question(0))
        (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("llama_index_refine")]
        assert f"{STEPS[step]}: Qdrant answers 401" in told
        assert is_a_sentence(told)
        between = step in (("query", 3), ("query", 4))
        assert refinement.refined == between
        assert between or refinement.reason in told


def test_what_people_have_judged_is_named_when_it_cannot_be_fetched(server):
    judgements = {question(0).query_str: {str(point): 1.0 for point in range(3, 200, 5)}}
    grader = FeedbackGrader(judgements, LabelGrader())
    server.faults["query", 3] = fault(server, "no key")
    refinement = retriever(client_of(server), grader, rounds=1, feedback_top_k=10).refine(question(0))
    assert refinement.reason.startswith("fetching what people have judged failed: Qdrant answers 401")


def test_a_teacher_and_a_refiner_that_fail_are_named_too(server):
    class Breaking(LabelGrader):
        def grade(self, query, nodes):
            raise RuntimeError("two\n  lines")

    reason = retriever(client_of(server), Breaking()).refine(question(0)).reason
    assert reason == "grading failed: RuntimeError: two lines"


def test_no_answer_in_time(server):
    if isinstance(server, QdrantServer):
        server.faults["query", 3] = Fault(silent=True)
    else:
        server.faults["query", 3] = Fault(status=grpc.StatusCode.DEADLINE_EXCEEDED, said="Deadline Exceeded")
    reason = retriever(client_of(server), rounds=1).refine(question(0)).reason
    assert reason.startswith("the second search failed: Qdrant did not answer in time: give it longer with")
    assert is_a_sentence(reason)


def test_a_server_that_is_gone(server):
    reason = retriever(client_of(server), Interrupting(server.stop), rounds=1).refine(question(0)).reason
    assert reason.startswith("the second search failed: Qdrant cannot be reached (")
    assert reason.endswith("check that the server runs, and that the client's url and port are right")
    assert is_a_sentence(reason)
    server.stop = lambda: None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"<html><body>Bad gateway of acme</body></html>", "Qdrant answers 502 (Bad Gateway): ask again later"),
        (b"", "Qdrant answers 502 (Bad Gateway): ask again later"),
        (b"no upstream", "Qdrant answers 502 (no upstream): ask again later"),
        (b'{"message": "no"}', "Qdrant answers 502 (Bad Gateway): ask again later"),
        (b"x" * 5000, "x ...): ask again later"),
    ],
)
def test_what_stands_in_front_of_qdrant_is_no_wall_of_text(qdrant_server, raw, said):
    qdrant_server.storage.create_collection("c", COSINE)
    qdrant_server.storage.upsert("c", points())
    qdrant_server.faults["query", 3] = Fault(status=502, raw=raw)
    reason = retriever(client_of(qdrant_server), rounds=1).refine(question(0)).reason
    assert reason.endswith(said)
    assert len(reason) < 400


def test_an_answer_that_is_not_qdrants(qdrant_server):
    qdrant_server.storage.create_collection("c", COSINE)
    qdrant_server.storage.upsert("c", points())
    qdrant_server.faults["query", 3] = Fault(status=200, raw=b'{"result": 7}')
    reason = retriever(client_of(qdrant_server), rounds=1).refine(question(0)).reason
    assert reason.startswith("the second search failed: Qdrant's answer cannot be read")
    assert is_a_sentence(reason)


@pytest.mark.parametrize("kind", ["memory", "edge"])
def test_in_the_process_it_is_a_sentence_too(kind, tmp_path):
    client = QdrantClient(":memory:") if kind == "memory" else EdgeClient(tmp_path)
    client.create_collection("c", COSINE)
    client.upsert("c", points())
    deleting = Interrupting(lambda: client.delete_collection("c"))
    reason = retriever(client, deleting, rounds=1).refine(question(0)).reason
    assert reason.startswith("the second search failed: Collection c not found")
    assert reason.endswith("check whether it was deleted or renamed")
    assert is_a_sentence(reason)


def test_a_client_that_is_closed(server):
    for client in (client_of(server), QdrantClient(":memory:")):
        if client_is_local := not hasattr(client._client, "_prefer_grpc"):
            client.create_collection("c", COSINE)
            client.upsert("c", points())
        reason = retriever(client, Interrupting(client.close), rounds=1).refine(question(0)).reason
        assert "closed" in reason, client_is_local
        assert reason.endswith("make a new client, and a new retriever on it")
        assert is_a_sentence(reason)


def test_a_key_with_a_line_break_is_not_told():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        for over_grpc in (False, True):
            client = QdrantClient(
                url=f"http://127.0.0.1:{port}",
                grpc_port=port,
                prefer_grpc=over_grpc,
                api_key="a-secret\n",
                check_compatibility=False,
                timeout=1,
            )
            with pytest.raises(Exception, match=r".*") as raised:
                client.count("c")
            told = in_a_sentence(raised.value)
            assert "secret" not in told
            assert "line break" in told


def test_behind_two_http_libraries_the_cause_is_told():
    refused = ResponseHandlingException(httpx.ConnectError("All connection attempts failed"))
    refused.source.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert "Connection refused" in in_a_sentence(refused)
    certificate = ResponseHandlingException(httpx.ConnectError("x"))
    certificate.source.__context__ = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed")
    assert in_a_sentence(certificate).endswith("the certificate that signed the server's")
    plain = ResponseHandlingException(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"))
    assert "does not speak TLS" in in_a_sentence(plain)
    nowhere = ResponseHandlingException(OSError(-2, "Name or service not known"))
    assert in_a_sentence(nowhere).endswith("check the spelling of the client's url")


@given(st.text(max_size=600), st.integers(100, 599))
def test_whatever_is_said_is_one_line_and_short(text, status):
    errors = [
        UnexpectedResponse(status, "Reason", text.encode(), httpx.Headers()),
        ResourceExhaustedResponse(text, 3),
        ResponseHandlingException(OSError(text)),
        ValueError(text),
        RuntimeError(text),
    ]
    for error in errors:
        told = in_a_sentence(error)
        assert told.splitlines() == [told]
        assert 0 < len(told) < 500
