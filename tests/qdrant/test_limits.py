"""Strict mode: a retriever keeps to what a collection allows, and says what that costs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import ImageNode
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from llama_index_refine import RefinedRetriever
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.qdrant.limits import PAGES, Limits, joined, read_limits
from llama_index_refine.qdrant.requests import SearchOptions
from llama_index_refine.scheduling import run
from tests.faults import Fault
from tests.places import SIZE, LabelGrader, hits, points, question, sparse_query
from tests.strict_mode import StrictMode

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
SERVERS = ["rest", "grpc", "server", "server-grpc"]
TENANT = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="a"))])
QUANTISED = models.SearchParams(
    hnsw_ef=512, exact=True, quantization=models.QuantizationSearchParams(rescore=True, oversampling=4.0)
)


def retriever(client, name, grader=None, **kwargs) -> RefinedRetriever:
    options = {"text_key": "meta.abstract", "grader": grader or LabelGrader(), "trust": 1.0, "on_error": "raise"}
    options |= {"rounds": 2, "early_stop": False}
    return RefinedRetriever.from_collection(client, name, **options | kwargs)


def limited(place, vectors=COSINE, made=None, **limits) -> str:
    """A collection with limits, whose real server has them in its configuration."""
    limits = {"unindexed_filtering_retrieve": True, **limits}
    config = models.StrictModeConfig(enabled=True, **limits)
    if place.server:
        place.server.strict = StrictMode(config)
        name = place.create(vectors, **(made or {}))
    else:
        name = place.create(vectors, strict_mode_config=config, **(made or {}))
    return name


HYBRID = {"vector_store_query_mode": "hybrid", "sparse_query_fn": sparse_query}


def limited_hybrid(place, max_query_limit: int) -> str:
    """One with words beside the dense vectors, and a limit."""
    sparse = {"sparse_vectors_config": {"words": models.SparseVectorParams()}}
    name = limited(place, {"dense": COSINE}, sparse, max_query_limit=max_query_limit)
    place.write(name, points("dense", sparse="words"))
    return name


on_servers = pytest.mark.parametrize("place", SERVERS, indirect=True)


def sentences(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "strict mode" in record.getMessage()]


@on_servers
@pytest.mark.parametrize("most", [50, 10, 3])
@pytest.mark.parametrize("top_k", [25, 90])
def test_searches_are_paged(place, most, top_k, caplog):
    name = limited(place, max_query_limit=most)
    place.write(name, points())
    refined = retriever(place.client, name, similarity_top_k=top_k)
    with caplog.at_level(logging.WARNING):
        refinements = [refined.refine(question(topic)) for topic in range(3)]
    assert all(one.refined for one in refinements)
    assert {one.rounds for one in refinements} == {2}
    assert {len(one.nodes) for one in refinements} == {top_k}
    assert {len(one.grades) for one in refinements} == {20}
    # Fewer than thirty only where more of them were graded.
    assert min(len(one.background) for one in refinements) > 15
    for one in refinements:
        assert len({entry.node.node_id for entry in one.nodes}) == top_k
    cut = top_k == 90 and most * PAGES < top_k
    assert len(sentences(caplog)) == cut
    if cut:
        assert sentences(caplog)[0].endswith(f"among the first {most * PAGES} nodes (max_query_limit)")


@on_servers
def test_what_is_found_does_not_depend_on_the_pages(place):
    free = limited(place)
    place.write(free, points())
    expected = [retriever(place.client, free).refine(question(topic)) for topic in range(2)]
    name = limited(place, max_query_limit=7)
    place.write(name, points())
    for topic, one in enumerate(expected):
        paged = retriever(place.client, name).refine(question(topic))
        assert [entry.node.node_id for entry in paged.nodes] == [entry.node.node_id for entry in one.nodes]
        assert np.allclose(paged.vector, one.vector, atol=1e-5)


@on_servers
def test_fused_rankings_end_where_they_must(place):
    name = limited_hybrid(place, 10)
    refinement = retriever(place.client, name, **HYBRID).refine(question(0))
    assert refinement.refined
    assert len(refinement.nodes) == 10


@on_servers
def test_options_are_lowered_and_said_once(place, caplog):
    name = limited(place, max_timeout=2, search_max_hnsw_ef=32, search_allow_exact=False, search_max_oversampling=1.5)
    place.write(name, points())
    options = {"timeout": 5, "search_params": QUANTISED}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert retriever(place.client, name, vector_store_kwargs=options).refine(question(0)).refined
    assert sorted(sentence.split("strict mode: ")[1] for sentence in sentences(caplog)) == [
        "hnsw_ef is 32 instead of 512 (search_max_hnsw_ef)",
        "oversampling is 1.5 (search_max_oversampling)",
        "requests have 2 seconds instead of 5 (max_timeout)",
        "searches use the index and are not exact (search_allow_exact)",
    ]


@on_servers
def test_nothing_is_said_of_limits_that_are_wide_enough(place, caplog):
    place.needs_a_client("1.20", "rest grpc server server-grpc", "knows no limit for the searches of a request")
    name = limited(
        place, max_query_limit=1000, max_timeout=60, search_max_hnsw_ef=1000, search_max_oversampling=9.0,
        filter_max_conditions=10, condition_max_size=10_000, search_max_batchsize=100, read_rate_limit=10_000,
    )  # fmt: skip
    place.write(name, points())
    options = {"timeout": 5, "search_params": QUANTISED.model_copy(update={"exact": None}), "qdrant_filters": TENANT}
    with caplog.at_level(logging.WARNING):
        assert retriever(place.client, name, vector_store_kwargs=options).refine(question(0)).refined
    assert not sentences(caplog)


@on_servers
@pytest.mark.parametrize("top_k", [10, 90])
def test_a_filter_without_room_for_ids(place, top_k, caplog):
    name = limited(place, filter_max_conditions=1)
    place.write(name, points())
    judging, filters = FeedbackGrader({"0": {"199": 1.0}}, LabelGrader()), {"qdrant_filters": TENANT}
    refined = retriever(place.client, name, judging, similarity_top_k=top_k, vector_store_kwargs=filters)
    with caplog.at_level(logging.WARNING):
        refinements = [refined.refine(question(0)) for _ in range(2)]
    for one in refinements:
        assert one.refined
        assert one.rounds == 2
        assert {entry.node.metadata["tenant"] for entry in one.nodes} == {"a"}
    told = sentences(caplog)
    assert len(told) == 2
    assert all(sentence.endswith("(filter_max_conditions)") for sentence in told)
    assert any("nodes with a judgement" in sentence for sentence in told)
    assert any("rebuilt" in sentence for sentence in told)


@on_servers
@pytest.mark.parametrize("top_k", [10, 90])
def test_few_ids_in_a_condition(place, top_k):
    name = limited(place, condition_max_size=3)
    place.write(name, points())
    judged = {str(point): 1.0 for point in range(4, 60, 5)}
    refined = retriever(place.client, name, FeedbackGrader({"0": judged}, LabelGrader()), similarity_top_k=top_k)
    for _ in range(2):
        refinement = refined.refine(question(0))
        assert refinement.refined
        assert refinement.rounds == 2 or len(refinement.grades) == 20
        assert {entry.node.node_id for entry in refinement.graded_nodes} & judged.keys()


@on_servers
def test_few_searches_in_a_request(place):
    place.needs_a_client("1.20", "rest grpc server server-grpc", "knows no limit for the searches of a request")
    name = limited(place, search_max_batchsize=2, max_query_limit=10)
    place.write(name, points())
    refined = retriever(place.client, name)
    assert all(one.refined for one in refined.refine_batch([question(topic) for topic in range(3)]))


@on_servers
def test_a_filter_by_what_is_not_indexed_is_refused_with_what_to_do(place):
    name = limited(place, unindexed_filtering_retrieve=False)
    place.write(name, points())
    refined = retriever(place.client, name, vector_store_kwargs={"qdrant_filters": TENANT})
    with pytest.raises(ValueError, match=r'refuses the filters: .*Index required .*"tenant".*create a payload index'):
        refined.retrieve(question(0))
    assert retriever(place.client, name).refine(question(0)).refined


@on_servers
def test_strict_mode_that_is_switched_on_later_is_noticed(place):
    name = place.create(COSINE)
    place.write(name, points())
    refined = retriever(place.client, name, similarity_top_k=20)
    assert refined.refine(question(0)).refined
    config = models.StrictModeConfig(enabled=True, max_query_limit=10)
    if place.server:
        place.server.strict = StrictMode(config)
    else:
        place.writer.update_collection(name, strict_mode_config=config)
    refinement = refined.refine(question(1))
    assert refinement.refined
    assert len(refinement.nodes) == 20
    assert hits(refinement.nodes, 1) > hits(refinement.nodes_before, 1)


# Rate limits, whose minutes are not waited for on a real server


@pytest.mark.parametrize("place", ["rest", "grpc"], indirect=True)
@pytest.mark.parametrize("searches", [2, 3])
async def test_a_short_wait_is_waited(place, searches):
    name = limited(place, read_rate_limit=60)
    place.write(name, points())
    refined = retriever(place.client, name)
    for number, asynchronous in enumerate((False, True), 1):
        place.server.strict.left = searches
        refinement = await refined.arefine(question(0)) if asynchronous else refined.refine(question(0))
        assert refinement.refined
        assert place.server.strict.refused == number


@pytest.mark.parametrize("place", ["rest", "grpc"], indirect=True)
def test_for_a_long_wait_the_first_search_stands(place):
    name = limited(place, read_rate_limit=60)
    place.server.strict.left, place.server.strict.retry_after = 3, 20
    place.write(name, points())
    refinement = retriever(place.client, name, on_error="fallback", rounds=1).refine(question(0))
    assert place.server.strict.refused == 1
    assert not refinement.refined
    assert len(refinement.nodes) == 10
    assert "Qdrant answers 429 (Rate limiting exceeded: Read rate limit exceeded" in refinement.reason
    assert refinement.reason.endswith("send fewer queries at a time, or raise the collection's read_rate_limit")


@pytest.mark.parametrize("place", ["rest"], indirect=True)
def test_a_server_that_says_at_once_again_and_again_is_not_asked_for_ever(place, monkeypatch):
    waited = []
    monkeypatch.setattr("llama_index_refine.qdrant.clients.time.sleep", waited.append)
    name = place.create(COSINE)
    place.server.faults["query", 0] = Fault(status=429, headers={"Retry-After": "0"})
    with pytest.raises(ResourceExhaustedResponse):
        retriever(place.client, name).retrieve(question(0))
    assert waited == [1] * 5


@pytest.mark.parametrize("place", ["server", "server-grpc"], indirect=True)
def test_a_real_rate_limit_leaves_the_first_searchs_nodes(place):
    name = limited(place, read_rate_limit=4)
    place.write(name, points())
    refined = retriever(place.client, name, on_error="fallback")
    refinement = refined.refine(question(0))
    assert not refinement.refined
    assert len(refinement.nodes) == 10
    assert "Read rate limit exceeded" in refinement.reason


# Limits by themselves


@given(limit=st.integers(1, 400), most=st.integers(1, 60))
def test_pages_ask_for_the_same_points_once(limit, most):
    asked = Limits(max_query_limit=most).paged(models.QueryRequest(query=[1.0], limit=limit, with_payload=True))
    places = [at for page in asked for at in range(page.offset or 0, (page.offset or 0) + page.limit)]
    assert places == [*range(limit)]
    assert all(page.limit <= most and page.with_payload and page.query == [1.0] for page in asked)


def test_what_two_pages_share_counts_once():
    page = [models.ScoredPoint(id=at, version=0, score=1.0) for at in range(3)]
    assert [point.id for point in joined([page, page[2:], []])] == [0, 1, 2]


def test_without_strict_mode_there_are_no_limits():
    client = QdrantClient(":memory:")
    client.create_collection("c", COSINE)
    info = client.get_collection("c")
    assert read_limits(info) == Limits()
    off = models.StrictModeConfigOutput(enabled=False, max_query_limit=5)
    config = info.config.model_copy(update={"strict_mode_config": off})
    assert read_limits(info.model_copy(update={"config": config})) == Limits()
    options = SearchOptions(timeout=5, search_params=QUANTISED)
    assert Limits().keep(options) == (options, [])
    assert run([retriever(client, "c")._collection.space()])[0].get().size == SIZE


@on_servers
def test_a_boosted_hybrid_search_keeps_to_the_limit_in_all_its_parts(place):
    name = limited_hybrid(place, 50)
    boost = {"sum": ["$score", {"mult": [0.002, "number"]}]}
    refinement = retriever(place.client, name, vector_store_kwargs={"boost": boost}, **HYBRID).refine(question(0))
    assert refinement.refined
    assert len(refinement.nodes) == 10


@on_servers
def test_pictures_come_with_a_filter_that_has_no_room_for_ids(place):
    pixel = "data:image/png;base64,iVBORw0KGgo="
    name = limited(place, filter_max_conditions=1)
    place.write(name, [one.model_copy(update={"payload": {**one.payload, "picture": pixel}}) for one in points()])
    refined = retriever(place.client, name, image_key="picture", vector_store_kwargs={"qdrant_filters": TENANT})
    refinement = refined.refine(question(0))
    assert refinement.refined
    assert len(refinement.nodes) == len(refinement.nodes_before) == 10
    assert {type(entry.node) for entry in refinement.nodes} == {ImageNode}
