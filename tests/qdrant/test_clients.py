"""Qdrant's client in front of a server that fails in every way, and the operations on it."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from llama_index_refine import RefinedRetriever
from llama_index_refine.qdrant.clients import BATCH, Batch, QueryPoints, _twins
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.errors import refused
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.scheduling import arun
from llama_index_refine.stores import open_store
from tests.faults import Fault
from tests.places import SIZE, LabelGrader, points, question
from tests.qdrant_grpc_server import QdrantGrpcServer

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
# With one round: the first search, the background, the second search.
SECOND = ("query", 3)


@pytest.fixture
def server(qdrant_server):
    qdrant_server.storage.create_collection("c", COSINE)
    qdrant_server.storage.upsert("c", points())
    return qdrant_server


def client_of(server, **kwargs) -> QdrantClient:
    return QdrantClient(url=server.url, check_compatibility=False, timeout=1, **kwargs)


def retriever(client, **kwargs) -> RefinedRetriever:
    return RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=LabelGrader(), rounds=1, **kwargs)


def recreated(server, size: int):
    def do() -> None:
        server.storage.delete_collection("c")
        server.storage.create_collection("c", models.VectorParams(size=size, distance=models.Distance.COSINE))

    return do


FAULTS = {
    "429": lambda server: Fault(status=429),
    "429, try later": lambda server: Fault(status=429, headers={"Retry-After": "60"}),
    "500": lambda server: Fault(status=500),
    "503": lambda server: Fault(status=503),
    "silent": lambda server: Fault(silent=True),
    "half an answer": lambda server: Fault(half=True),
    "connection reset": lambda server: Fault(reset=True),
    "collection deleted": lambda server: Fault(before=lambda: server.storage.delete_collection("c")),
    "collection of another size": lambda server: Fault(before=recreated(server, 4)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_after_the_first_search_leaves_its_nodes(server, fault, caplog):
    server.faults[SECOND] = FAULTS[fault](server)
    with caplog.at_level(logging.WARNING):
        refinement = retriever(client_of(server)).refine(question(0))
    assert not refinement.refined
    assert len(refinement.nodes) == 10
    assert refinement.nodes == refinement.nodes_before
    assert refinement.reason in caplog.text


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_same_without_blocking(server, fault):
    server.faults[SECOND] = FAULTS[fault](server)
    client = AsyncQdrantClient(url=server.url, check_compatibility=False, timeout=1)
    refinement = await retriever(client).arefine(question(0))
    assert not refinement.refined
    assert len(refinement.nodes) == 10


@pytest.mark.parametrize("fault", FAULTS)
def test_on_error_raise_raises_it(server, fault):
    server.faults[SECOND] = FAULTS[fault](server)
    with pytest.raises((ApiException, QdrantException)):
        retriever(client_of(server), on_error="raise").retrieve(question(0))


def test_a_server_that_is_gone_after_the_first_search(server):
    server.faults[SECOND] = Fault(before=server.stop_listening, reset=True)
    refined = retriever(client_of(server))
    assert len(refined.retrieve(question(0))) == 10
    with pytest.raises(ResponseHandlingException):
        refined.retrieve(question(0))


@pytest.mark.parametrize("call", ["describe", "query"])
@pytest.mark.parametrize("fault", ["429", "500", "silent", "half an answer"])
def test_what_fails_before_there_are_nodes_is_raised(server, call, fault):
    client = client_of(server)
    refined = retriever(client)
    server.faults[call, 0] = FAULTS[fault](server)
    with pytest.raises((ApiException, QdrantException)):
        refined.retrieve(question(0))


def test_points_deleted_between_the_searches_are_not_returned_by_the_second(server):
    server.faults[SECOND] = Fault(
        before=lambda: server.storage.delete("c", models.PointIdsList(points=[*range(0, 200, 2)]))
    )
    refinement = retriever(client_of(server)).refine(question(0))
    graded = {entry.node.node_id for entry in refinement.graded_nodes}
    assert refinement.refined
    assert all(int(entry.node.node_id) % 2 or entry.node.node_id in graded for entry in refinement.nodes)


def test_points_deleted_before_they_are_graded_end_the_rounds(server):
    # The first search, the background, and then the ranking.
    server.faults["query", 3] = Fault(
        before=lambda: server.storage.delete("c", models.PointIdsList(points=[*range(200)]))
    )
    refined = RefinedRetriever.from_collection(client_of(server), "c", "meta.abstract", grader=LabelGrader())
    refinement = refined.refine(question(0))
    assert refinement.refined
    assert refinement.rounds == 1


def test_a_recreated_collection_is_described_anew(server):
    server.faults[SECOND] = Fault(before=recreated(server, 4))
    refined = retriever(client_of(server))
    assert not refined.refine(question(0)).refined
    with pytest.raises(ValueError, match=r"16 dimensions, .* has 4"):
        refined.retrieve(question(0))
    rows = [
        models.PointStruct(id=at, vector=point.vector[:4], payload=point.payload) for at, point in enumerate(points())
    ]
    server.storage.upsert("c", rows)
    assert refined.refine(QueryBundle("0", embedding=question(0).embedding[:4])).refined


def test_overload_does_not_make_the_next_query_dearer(server):
    refined = retriever(client_of(server))
    refined.retrieve(question(0))
    server.faults["query", server.count("query") + 1] = Fault(status=429)
    with pytest.raises(UnexpectedResponse):
        refined.retrieve(question(0))
    before = server.count("describe"), server.count("count")
    assert refined.refine(question(0)).refined
    assert (server.count("describe"), server.count("count")) == before


def test_a_timeout_in_the_options_bounds_every_call(server):
    client = QdrantClient(url=server.url, check_compatibility=False, timeout=600)
    refined = retriever(client, vector_store_kwargs={"timeout": 1})
    server.faults[SECOND] = Fault(silent=True)
    assert len(refined.retrieve(question(0))) == 10


def test_an_asynchronous_client_alone_serves_only_asynchronous_calls(server):
    refined = retriever(AsyncQdrantClient(url=server.url, check_compatibility=False))
    with pytest.raises(ValueError, match="only an asynchronous client: call the asynchronous method"):
        refined.retrieve(question(0))


# Operations


def search(vector: list[float]) -> Batch:
    return Batch([models.QueryRequest(query=vector, limit=1)] * 2)


def test_a_refused_query_fails_alone_and_a_failing_server_is_asked_once(server):
    operation = QueryPoints(open_store(client_of(server), "c", "text"))
    good, bad = search([1.0] * SIZE), search([1.0])
    first, second, third = operation.run([good, bad, good])
    assert len(first) == len(third) == 2
    assert isinstance(second, UnexpectedResponse)
    before = server.count("query")
    server.faults["query", 0] = Fault(status=503)
    results = operation.run([good] * BATCH)
    assert {type(result) for result in results} == {UnexpectedResponse}
    assert server.count("query") == before + 1


def test_batches_are_bounded(server):
    operation = QueryPoints(open_store(client_of(server), "c", "text"))
    different = [search([1.0, *[float(at)] * (SIZE - 1)]) for at in range(BATCH)]
    assert [len(result) for result in operation.run(different)] == [2] * BATCH
    sizes = [len(body["searches"]) for kind, body in server.calls if kind == "query"]
    assert sizes == [BATCH, BATCH]
    assert operation.run([]) == []
    # Those who wait for the same share it.
    assert [len(result) for result in operation.run([different[0]] * BATCH)] == [2] * BATCH
    assert len(server.calls[-1][1]["searches"]) == 2


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (UnexpectedResponse(400, "Bad Request", b"", {}), True),
        (UnexpectedResponse(404, "Not Found", b"", {}), True),
        (UnexpectedResponse(429, "Too Many Requests", b"", {}), False),
        (UnexpectedResponse(502, "Bad Gateway", b"", {}), False),
        (ResponseHandlingException(TimeoutError()), False),
        (ConnectionResetError(), False),
        (ValueError("Collection c not found"), True),
    ],
)
def test_refusals_are_told_from_failures(error, is_refusal):
    assert refused(error) == is_refusal


# gRPC


@pytest.fixture
def grpc_server():
    server = QdrantGrpcServer().start()
    server.storage.create_collection("c", COSINE)
    server.storage.upsert("c", points())
    yield server
    server.stop()


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "NOT_FOUND"])
async def test_grpcs_failures_leave_the_first_searchs_nodes(grpc_server, code):
    class Failing(LabelGrader):
        def grade(self, query, nodes):
            grpc_server.faults["query", 0] = Fault(status=getattr(grpc.StatusCode, code))
            return super().grade(query, nodes)

    where = {"url": "http://127.0.0.1", "grpc_port": grpc_server.port, "prefer_grpc": True}
    for client in (QdrantClient(**where, check_compatibility=False), AsyncQdrantClient(**where)):
        grpc_server.faults.clear()
        refined = RefinedRetriever.from_collection(client, "c", "meta.abstract", grader=Failing())
        refinement = await refined.arefine(question(0))
        assert not refinement.refined
        assert len(refinement.nodes) == 10


def test_grpcs_refusals_are_told_from_failures(grpc_server):
    client = QdrantClient(url="http://127.0.0.1", grpc_port=grpc_server.port, prefer_grpc=True)
    operation = QueryPoints(open_store(client, "c", "text"))
    good, bad = search([1.0] * SIZE), search([1.0])
    first, second = operation.run([good, bad])
    assert len(first) == 2
    assert isinstance(second, Exception)
    assert refused(second)
    grpc_server.faults["query", 0] = Fault(status=grpc.StatusCode.UNAVAILABLE)
    assert not refused(operation.run([good])[0])


def test_one_asynchronous_client_in_several_event_loops(server):
    # The client keeps no connections to "127.0.0.1" and "localhost".
    url = server.url.replace("127.0.0.1", "127.1")
    refined = retriever(AsyncQdrantClient(url=url, check_compatibility=False, timeout=1))

    async def several() -> list[int]:
        found = await asyncio.gather(*(refined.aretrieve(question(topic)) for topic in range(4)))
        return [len(nodes) for nodes in found]

    for _ in range(3):
        assert asyncio.run(several()) == [10] * 4


@pytest.fixture
def grpc_retriever(grpc_server):
    client = AsyncQdrantClient(
        url="http://127.0.0.1", grpc_port=grpc_server.port, prefer_grpc=True, check_compatibility=False, timeout=5
    )
    return retriever(client)


async def four(refined: RefinedRetriever) -> list[int]:
    found = await asyncio.gather(*(refined.aretrieve(question(topic)) for topic in range(4)))
    return [len(nodes) for nodes in found]


def test_one_asynchronous_client_over_grpc_in_several_event_loops(grpc_retriever):
    for _ in range(3):
        assert asyncio.run(four(grpc_retriever)) == [10] * 4
    # One other client serves them all.
    client = grpc_retriever._collection.store._aclient
    assert _twins.of(client) is _twins.of(client)


def test_one_asynchronous_client_over_grpc_in_several_threads_at_once(grpc_retriever):
    together = threading.Barrier(3, timeout=30)

    async def twice() -> list[int]:
        first = await four(grpc_retriever)
        await asyncio.to_thread(together.wait)
        return first + await four(grpc_retriever)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: asyncio.run(twice()), range(3))) == [[10] * 8] * 3


def test_an_event_loop_that_has_made_grpc_calls_may_be_blocked_by_who_waits_for_others(grpc_retriever):
    async def blocking() -> list[int]:
        before = await four(grpc_retriever)
        with ThreadPoolExecutor(1) as pool:
            return before + pool.submit(asyncio.run, four(grpc_retriever)).result(timeout=30)

    assert asyncio.run(blocking()) == [10] * 8


def test_an_event_loop_that_has_made_grpc_calls_may_end_in_the_middle_of_anothers(grpc_server, grpc_retriever):
    begun, ended = threading.Event(), threading.Event()

    def held() -> None:
        begun.set()
        ended.wait(30)

    async def until_begun() -> tuple[list[int], Future[list[int]]]:
        found = await four(grpc_retriever)
        grpc_server.faults["query", grpc_server.count("query") + 1] = Fault(before=held)
        others = pool.submit(asyncio.run, four(grpc_retriever))
        await asyncio.to_thread(begun.wait, 30)
        return found, others

    with ThreadPoolExecutor(1) as pool:
        found, others = asyncio.run(until_begun())
        ended.set()
        assert found == others.result(timeout=30) == [10] * 4


def test_a_call_that_is_given_up_in_one_event_loop_is_given_up_in_the_other(grpc_server, grpc_retriever):
    begun, ended = threading.Event(), threading.Event()

    def held() -> None:
        begun.set()
        ended.wait(30)

    async def given_up() -> None:
        task = asyncio.create_task(grpc_retriever.aretrieve(question(0)))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        await task

    async def home() -> list[int]:
        await four(grpc_retriever)
        grpc_server.faults["query", grpc_server.count("query") + 1] = Fault(before=held)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wrap_future(pool.submit(asyncio.run, given_up()))
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 10)
        return await four(grpc_retriever)

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(home()) == [10] * 4
    ended.set()


def test_a_closed_client_says_so(grpc_retriever):
    async def closed() -> None:
        await four(grpc_retriever)
        await grpc_retriever._collection.store._aclient.close()

    asyncio.run(closed())
    with pytest.raises(RuntimeError, match="was closed: make a new client, and a new retriever on it"):
        asyncio.run(grpc_retriever.aretrieve(question(0)))


def grpc_client(grpc_server, **kwargs) -> AsyncQdrantClient:
    options = {"grpc_port": grpc_server.port, "prefer_grpc": True, "check_compatibility": False, "timeout": 5}
    return AsyncQdrantClient(url="http://127.0.0.1", **options, **kwargs)


async def awaited_token() -> str:
    return "token"


class Provider:
    async def __call__(self) -> str:
        return "token"


@pytest.mark.filterwarnings("ignore:Auth token provider is used with an insecure connection")
@pytest.mark.parametrize("provider", [awaited_token, Provider()])
async def test_a_client_whose_token_is_awaited_makes_its_calls_itself(grpc_server, provider):
    client = grpc_client(grpc_server, auth_token_provider=provider)
    collection = QdrantCollection(open_store(client, "c", "meta.abstract"))
    query = DenseQuery(np.asarray(question(0).embedding, dtype=np.float32))
    (outcome,) = await arun([collection.search(query, 5, vectors=3)])
    assert len(outcome.get().ids) == 5
    assert _twins.of(client) is None


def test_a_client_takes_its_twin_along(grpc_server):
    client = grpc_client(grpc_server)
    twin = weakref.ref(_twins.of(client))
    assert twin() is _twins.of(client)
    del client
    gc.collect()
    assert twin() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_other_clients_and_threads(grpc_server):
    client = grpc_client(grpc_server)
    twin, threads = _twins.of(client), _twins.threads
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=lambda: answers.put((len(_twins._of_client), _twins.threads is threads)), daemon=True)
    with _twins._lock:
        child.start()
    try:
        assert answers.get(timeout=60) == (0, False)
    finally:
        child.kill()
        child.join()
    assert _twins.of(client) is twin


def test_calls_of_many_event_loops_are_in_flight_at_once(grpc_server):
    """None waits for another: each answer is held until all have been asked for."""
    client = grpc_client(grpc_server)
    collection = QdrantCollection(open_store(client, "c", "meta.abstract"))
    query = DenseQuery(np.asarray(question(0).embedding, dtype=np.float32))
    asyncio.run(arun([collection.space()]))
    together = threading.Barrier(3, timeout=30)
    grpc_server.faults["query", 0] = Fault(before=together.wait)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: asyncio.run(arun([collection.search(query, 5)])), range(3)))
    assert [len(outcome.get().ids) for (outcome,) in found] == [5] * 3
