"""The client of Qdrant Edge by itself; what it has in common with others is in test_collection.py."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle

import pytest
from llama_index.core.embeddings import MockEmbedding
from qdrant_client import QdrantClient, models

from llama_index_refine import RefinedRetriever
from llama_index_refine.qdrant.edge import EdgeClient
from tests.places import SIZE, LabelGrader, points, question, vectors

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)


@pytest.fixture
def edge(tmp_path):
    client = EdgeClient(tmp_path / "edge")
    client.create_collection("c", COSINE)
    client.upload_points("c", iter(points()))
    yield client
    client.close()


@pytest.fixture
def local():
    client = QdrantClient(":memory:")
    client.create_collection("c", COSINE)
    client.upsert("c", points())
    return client


def field(key, **condition):
    return models.FieldCondition(key=key, **condition)


FILTERS = {
    "match": models.Filter(must=field("topic", match=models.MatchValue(value="1"))),
    "any": models.Filter(must=[field("topic", match=models.MatchAny(any=["1", "2"]))]),
    "except": models.Filter(must=[field("topic", match=models.MatchExcept(**{"except": ["1"]}))]),
    "range": models.Filter(must=[field("meta.year", range=models.Range(gte=1995, lt=2001))]),
    "should": models.Filter(
        should=[field("number", range=models.Range(lt=5)), field("number", range=models.Range(gt=190))]
    ),
    "at least": models.Filter(
        min_should=models.MinShould(
            conditions=[field("number", range=models.Range(lt=9)), field("topic", match=models.MatchValue(value="1"))],
            min_count=2,
        )
    ),
    "not": models.Filter(must_not=[models.HasIdCondition(has_id=[1, 2, 3])]),
    "empty": models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="nothing"))]),
    "null": models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="topic"))]),
    "nested": models.Filter(
        must=[models.Filter(must_not=[models.Filter(must=[field("tenant", match=models.MatchValue(value="a"))])])]
    ),
    "date": models.Filter(must=[field("when", range=models.DatetimeRange(gt=datetime.datetime(2020, 1, 1)))]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_mean_what_they_mean_to_qdrant_client(edge, local, name):
    expected, _ = local.scroll("c", FILTERS[name], limit=200)
    found, following = edge.scroll("c", FILTERS[name], limit=200)
    assert [record.id for record in found] == [record.id for record in expected]
    assert following is None
    assert edge.count("c", FILTERS[name]).count == len(expected)


def test_searches_find_what_qdrant_client_finds(edge, local):
    vector = vectors()[3].tolist()
    for client in (edge, local):
        assert client.query_points("c", vector, limit=1).points[0].payload["number"] == 3
    expected = local.query_points("c", vector, limit=20, with_vectors=True).points
    found = edge.query_points("c", vector, limit=20, with_vectors=True).points
    assert [point.id for point in found] == [point.id for point in expected]
    assert [point.score for point in found] == pytest.approx([point.score for point in expected], abs=1e-5)
    assert found[0].vector == pytest.approx(expected[0].vector, abs=1e-5)


def test_collections_outlive_the_client(tmp_path):
    first = EdgeClient(tmp_path)
    params = {
        "a": COSINE,
        "b": models.VectorParams(size=4, distance=models.Distance.DOT, datatype=models.Datatype.UINT8),
    }
    first.create_collection(
        "c",
        params,
        sparse_vectors_config={"s": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        hnsw_config=models.HnswConfigDiff(m=8),
    )
    first.upsert("c", points("a", sparse="s"))
    first.close()
    second = EdgeClient(tmp_path)
    info = second.get_collection("c")
    assert info.points_count == 200
    assert info.config.params.vectors["b"].datatype == models.Datatype.UINT8
    assert info.config.params.sparse_vectors["s"].modifier == models.Modifier.IDF
    assert info.config.hnsw_config.m == 8
    (record,) = second.retrieve("c", [7], with_vectors=True)
    assert record.vector["s"] == models.SparseVector(indices=[2, 107], values=[1.0, 0.5])
    second.close()


def test_a_collections_name_is_never_a_path(tmp_path):
    client = EdgeClient(tmp_path / "edge")
    for name in ("../outside", "..", "a/b", "/etc"):
        client.create_collection(name, COSINE)
        assert client.collection_exists(name)
    assert {entry.name for entry in tmp_path.iterdir()} == {"edge"}
    assert len(list((tmp_path / "edge").iterdir())) == 4
    client.close()


@pytest.mark.parametrize("name", ["", " ", None])
def test_a_name_that_came_out_empty_is_refused_and_deletes_nothing(edge, name):
    for call in (edge.delete_collection, edge.collection_exists, edge.get_collection, edge.count, edge.optimize):
        with pytest.raises(ValueError, match="collection_name is empty"):
            call(name)
    with pytest.raises(ValueError, match="collection_name is empty"):
        edge.create_collection(name, COSINE)
    assert edge.count("c").count == 200


@pytest.mark.parametrize(
    "nothing",
    [None, [], models.PointIdsList(points=[]), models.Filter(), models.FilterSelector(filter=models.Filter())],
)
def test_what_selects_nothing_or_everything_deletes_nothing(edge, nothing):
    with pytest.raises(ValueError, match="points_selector is empty"):
        edge.delete("c", nothing)
    assert edge.count("c").count == 200


def test_empty_names_of_folders_and_fields_are_refused(edge):
    with pytest.raises(ValueError, match="path is empty"):
        EdgeClient("")
    with pytest.raises(ValueError, match="field_name is empty"):
        edge.create_payload_index("c", "", models.PayloadSchemaType.KEYWORD)


def test_points_and_collections_are_deleted(edge):
    edge.delete("c", [1, 2])
    edge.delete("c", models.PointIdsList(points=[3]))
    edge.delete("c", models.FilterSelector(filter=FILTERS["match"]))
    assert edge.count("c").count == 200 - 2 - 40  # of 1, 2 and 3, 1 is about topic 1
    assert edge.delete_collection("c")
    assert not edge.delete_collection("c")
    with pytest.raises(ValueError, match="Collection c not found"):
        edge.count("c")
    edge.create_collection("c", COSINE)
    assert edge.count("c").count == 0


def test_an_index_on_a_payload_field_changes_no_answer(edge):
    edge.create_payload_index("c", "topic", models.PayloadSchemaType.KEYWORD)
    edge.create_payload_index("c", "number", "integer", wait=True)
    assert edge.count("c", FILTERS["match"]).count == 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.create_collection("c", COSINE), "already exists"),
        (lambda client: client.query_points("c", [1.0] * SIZE, with_payload=["topic"]), None),
        (lambda client: client.query_points("c", 1), "does not translate int"),
        (
            lambda client: client.query_points(
                "c", [1.0] * SIZE, with_payload=models.PayloadSelectorInclude(include=["a"])
            ),
            "whole or not at all",
        ),
        (lambda client: client.count("c", shard_key_selector="a"), "shard_key_selector has no meaning"),
        (
            lambda client: client.create_collection("d", COSINE, wal_config=models.WalConfigDiff(wal_capacity_mb=1)),
            "wal_config has no meaning",
        ),
    ],
)
def test_what_edge_lacks_is_refused(edge, call, message):
    if message is None:
        assert set(call(edge).points[0].payload) == {"topic"}
    else:
        with pytest.raises(ValueError, match=message):
            call(edge)


async def test_a_retriever_reaches_it_from_asynchronous_code(edge):
    refined = RefinedRetriever.from_collection(
        edge, "c", "meta.abstract", embed_model=MockEmbedding(embed_dim=SIZE), grader=LabelGrader(), on_error="raise"
    )
    assert (await refined.arefine(question(0))).refined


def test_a_client_says_why_it_cannot_be_pickled(edge):
    with pytest.raises(TypeError, match="one process at a time may open its folder: keep it in one process"):
        pickle.dumps(edge)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told_instead_of_waiting_forever(edge):
    edge.count("c")
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()

    def ask() -> None:
        for call in (lambda: edge.count("c"), lambda: edge.scroll("c"), edge.close):
            try:
                answers.put(repr(call()))
            except RuntimeError as error:
                answers.put(str(error))

    child = fork.Process(target=ask, daemon=True)
    child.start()
    try:
        for _ in range(3):
            assert "open them after the fork, in one process, or let several share a Qdrant server" in answers.get(
                timeout=60
            )
    finally:
        child.kill()
        child.join()
    assert edge.count("c").count == len(points())
