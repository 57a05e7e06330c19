"""What a query sends to a server: how many requests, and what they bring."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from llama_index.core.storage.kvstore import SimpleKVStore
from qdrant_client import QdrantClient, models

from llama_index_refine import BaseGrader, QueryRefiner, RefinedRetriever, RefinementMemory
from tests.places import SIZE, LabelGrader, points, question, sparse_query

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)


class Sparing(LabelGrader):
    """A teacher to whom few are relevant."""

    def grade(self, query, nodes):
        return [grade * (at < 3) for at, grade in enumerate(super().grade(query, nodes))]


class Silent(LabelGrader):
    """A teacher that has nothing to say of some."""

    def grade(self, query, nodes):
        return [None if at % 4 == 3 else grade for at, grade in enumerate(super().grade(query, nodes))]


class Constant(BaseGrader):
    """Finds the first of all relevant."""

    def grade(self, query, nodes):
        return [float(node.node_id == "0") for node in nodes]


def retriever(client, grader, **kwargs) -> RefinedRetriever:
    options = {"grader": grader, "trust": 1.0, "rounds": 2, "early_stop": False, **kwargs}
    return RefinedRetriever.from_collection(client, "c", "meta.abstract", **options)


def searches(server) -> list[list[dict]]:
    """What each request of a second query asks for."""
    return [body["searches"] for kind, body in server.calls if kind == "query"]


@pytest.fixture
def client(qdrant_server):
    qdrant_server.storage.create_collection("c", COSINE)
    qdrant_server.storage.upsert("c", points())
    return QdrantClient(url=qdrant_server.url, check_compatibility=False)


def asked(server, refined) -> list[list[dict]]:
    refined.refine(question(0))
    server.calls.clear()
    assert refined.refine(question(1)).rounds == 2
    assert len(server.calls) == len(searches(server))
    return searches(server)


def test_where_few_are_relevant_three_requests_bring_what_is_graded_and_returned(qdrant_server, client):
    (first, look), (following,), (last,) = asked(qdrant_server, retriever(client, Sparing()))
    assert [search["limit"] for search in (first, look, following, last)] == [10, 5, 10, 10]
    assert [bool(search["with_vector"]) for search in (first, look, following, last)] == [True, False, True, False]
    for search, count in ((following, 10), (last, 20)):
        (seen,) = search["filter"]["must_not"]
        assert len(seen["has_id"]) == count


def settling(**kwargs) -> dict:
    """What has a query end after its first round, as nothing more would change its list."""
    return {"early_stop": True, "refiner": QueryRefiner(own_grade=1e-9), **kwargs}


def test_a_query_that_is_settled_at_once_is_not_searched_a_third_time(qdrant_server, client):
    refined = retriever(client, LabelGrader(), **settling())
    refined.refine(question(0))
    qdrant_server.calls.clear()
    settled = refined.refine(question(1))
    assert (settled.rounds, settled.saved_grades) == (1, 10)
    (first, *_), (following,) = searches(qdrant_server)
    assert (first["limit"], following["limit"]) == (10, 10)
    assert [at["number"] for at in (entry.node.metadata for entry in settled.graded_nodes)] == [
        entry.node.metadata["number"] for entry in settled.nodes_before
    ]
    # The same list as where the refined vector is searched for once more.
    again = client.query_points("c", query=settled.vector.tolist(), limit=30, with_payload=False).points
    graded = {entry.node.node_id: entry for entry in settled.graded_nodes}
    others = [str(point.id) for point in again if str(point.id) not in graded]
    shown = [entry.node.node_id for entry in settled.nodes if entry.node.node_id not in graded]
    assert len(shown) >= 2
    assert shown == others[: len(shown)]


@pytest.mark.parametrize("why", ["memory", "threshold", "ungraded"])
def test_the_last_ranking_is_the_second_search_whatever_else_counts(qdrant_server, client, why):
    options = {
        "memory": {"memory": RefinementMemory(SimpleKVStore())},
        "threshold": {"vector_store_kwargs": {"score_threshold": -1.0}},
        "ungraded": {"grader": Silent()},
    }[why]
    refined = retriever(client, **{"grader": LabelGrader(), **settling(**options)})
    refined.refine(question(0))
    qdrant_server.calls.clear()
    settled = refined.refine(question(1))
    assert settled.rounds == 1
    assert settled.saved_grades > 0
    assert len(settled.nodes) == 10
    _, following = searches(qdrant_server)
    assert following[0]["limit"] >= 10


def test_a_long_ranking_brings_ids_and_scores_alone(qdrant_server, client):
    _, (ranking,), (fetch,), _ = asked(qdrant_server, retriever(client, LabelGrader(), similarity_top_k=90))
    assert ranking["limit"] >= 90
    assert fetch["limit"] == 10
    assert not ranking["with_vector"]
    assert not ranking["with_payload"]


def test_what_has_been_seen_is_left_out_where_the_scores_of_both_halves_are_added(qdrant_server):
    sparse = {"words": models.SparseVectorParams()}
    qdrant_server.storage.create_collection("c", {"dense": COSINE}, sparse_vectors_config=sparse)
    qdrant_server.storage.upsert("c", points("dense", sparse="words"))
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    hybrid = {"vector_store_query_mode": "hybrid", "sparse_query_fn": sparse_query}
    _, (following,), (last,) = asked(qdrant_server, retriever(client, Sparing(), **hybrid))
    assert following["limit"] == 10
    for half in following["prefetch"]:
        (seen,) = half["filter"]["must_not"]
        assert len(seen["has_id"]) == 10
    for search in (following, last):
        assert [half["using"] for half in search["prefetch"]] == ["dense", "words"]
        assert {*search["query"]["defaults"]} == {"$score[0]", "$score[1]"}


def test_a_filter_holds_beside_what_has_been_seen(qdrant_server, client):
    tenant = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="a"))])
    refined = retriever(client, Sparing(), vector_store_kwargs={"qdrant_filters": tenant})
    _, (following,), _ = asked(qdrant_server, refined)
    assert following["filter"]["must"][0]["must"][0]["key"] == "tenant"
    graded = refined.refine(question(1)).graded_nodes
    assert {entry.node.metadata["tenant"] for entry in graded} == {"a"}
    assert len({entry.node.node_id for entry in graded}) == len(graded) == 20


@pytest.mark.parametrize("top_k", [10, 90])
@pytest.mark.parametrize("grader", [Sparing, LabelGrader])
def test_local_mode_which_asks_otherwise_finds_the_same(client, grader, top_k):
    local = QdrantClient(":memory:")
    local.create_collection("c", COSINE)
    local.upsert("c", points())
    for topic in range(3):
        here, there = (
            retriever(one, grader(), similarity_top_k=top_k).refine(question(topic)) for one in (local, client)
        )
        for part in ("graded_nodes", "nodes"):
            first, second = ([entry.node.node_id for entry in getattr(one, part)] for one in (here, there))
            assert first == second
        assert np.allclose(here.vector, there.vector, atol=1e-5)


@pytest.mark.parametrize(("size", "limits"), [(400, [20]), (1600, [20]), (4096, [10, 20])])
def test_short_vectors_all_come_along_and_long_ones_of_what_is_graded_alone(qdrant_server, size, limits):
    rows = np.random.default_rng(0).normal(size=(40, size))
    space = models.VectorParams(size=size, distance=models.Distance.COSINE)
    qdrant_server.storage.create_collection("wide", space)
    made = [models.PointStruct(id=at, vector=row.tolist(), payload={"text": "a"}) for at, row in enumerate(rows)]
    qdrant_server.storage.upsert("wide", made)
    client = QdrantClient(url=qdrant_server.url, check_compatibility=False)
    refined = RefinedRetriever.from_collection(
        client, "wide", "text", grader=Constant(), trust=1.0, similarity_top_k=20
    )
    found = refined.refine(QueryBundle("a", embedding=rows[0].tolist()))
    assert len(found.nodes_before) == 20
    searched = next(request for request in searches(qdrant_server) if request[0]["query"]["nearest"])
    assert [search["limit"] for search in searched if search["with_payload"]] == limits
    assert bool(searched[0]["with_vector"])
