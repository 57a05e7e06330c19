"""So many nodes of a document, and none that says what others have said."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from llama_index_refine import RefinedRetriever
from llama_index_refine.qdrant.points import Grouping, diverse
from llama_index_refine.retrieval.queries import Embedding
from llama_index_refine.scheduling import run
from tests.places import SIZE, LabelGrader, points, question, vectors

GROUPED = {"group_by": "meta.year", "group_size": 2}


def filled(place) -> str:
    name = place.create(models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    place.write(name, points())
    return name


def retriever(place, name, grader=None, **options):
    options = {"trust": 1.0, "on_error": "raise", **options}
    return RefinedRetriever.from_collection(
        place.client, name, "meta.abstract", grader=grader or LabelGrader(), **options
    )


def years(nodes) -> Counter:
    return Counter(entry.node.metadata["meta"]["year"] for entry in nodes)


def test_a_document_has_so_many_nodes_in_both_searches_and_in_what_is_graded(place):
    name, grader = filled(place), LabelGrader()
    found = retriever(place, name, grader, vector_store_kwargs=GROUPED, similarity_top_k=12, rounds=1).refine(
        question(0)
    )
    for nodes in (found.nodes_before, found.nodes, found.graded_nodes):
        assert len(nodes) >= 12
        assert max(years(nodes).values()) <= 2
    near = np.argsort(-(vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)) @ question(0).embedding)
    kept = Grouping("year", 2).first([str(1990 + at % 30) for at in near])
    assert [entry.node.metadata["number"] for entry in found.nodes_before] == near[kept[:12]].tolist()
    assert found.gained


def test_a_ranking_is_read_as_deep_as_it_takes_and_to_its_end(place):
    name = filled(place)
    kwargs = {"group_by": "topic"}
    found = retriever(place, name, vector_store_kwargs=kwargs, early_stop=False).refine(question(1))
    assert Counter(entry.node.metadata["topic"] for entry in found.nodes) == dict.fromkeys("01234", 1)
    # A point that lacks the field is a document of its own.
    lacking = retriever(place, name, vector_store_kwargs={"group_by": "nowhere"}).refine(question(1))
    assert len(lacking.nodes) == 10


def test_nodes_that_differ_are_chosen_after_the_refined_search(place):
    name = filled(place)
    plain = retriever(place, name).refine(question(2))
    by_relevance, differing = (
        retriever(place, name, vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": t})
        for t in (1.0, 0.3)
    )
    same, other = by_relevance.refine(question(2)), differing.refine(question(2))
    assert {entry.node_id for entry in same.nodes_before} == {entry.node_id for entry in plain.nodes_before}
    assert [entry.score for entry in same.nodes] == sorted((entry.score for entry in same.nodes), reverse=True)

    def overlap(nodes):
        rows = vectors()[[entry.node.metadata["number"] for entry in nodes]]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return float(np.triu(rows @ rows.T, 1).sum())

    assert len(other.nodes) == len(same.nodes) == 10
    assert other.nodes[0].node_id == same.nodes[0].node_id
    assert overlap(other.nodes) < overlap(same.nodes) - 1


@pytest.mark.parametrize(
    ("kwargs", "options", "told"),
    [
        ({"group_size": 2}, {}, "group_size has no effect without group_by"),
        ({"group_by": ""}, {}, "group_by must be the name of a payload field"),
        ({"group_by": "year", "group_size": 0}, {}, "group_size must be a whole number, at least 1"),
        ({"mmr_threshold": 0.5}, {}, "mmr_threshold has no effect without vector_store_query_mode='mmr'"),
        ({"mmr_threshold": 1.5}, {"vector_store_query_mode": "mmr"}, r"mmr_threshold must be in \[0, 1\]"),
        (
            {},
            {"vector_store_query_mode": "mmr", "score": "probability"},
            "score='probability' sorts nodes by probability",
        ),
        ({}, {"vector_store_query_mode": "mmr", "multivector_query_fn": len}, "'mmr' compares dense vectors"),
    ],
)
def test_what_has_no_meaning_is_refused(kwargs, options, told):
    with pytest.raises(ValueError, match=told):
        RefinedRetriever.from_collection(QdrantClient(":memory:"), "c", "text", vector_store_kwargs=kwargs, **options)


def sparse(texts):
    return [[1, 2]] * len(texts), [[1.0, 1.0]] * len(texts)


def test_what_a_kind_of_vector_cannot_do_is_refused_by_every_retriever():
    client = QdrantClient(":memory:")
    words = {"s": models.SparseVectorParams()}
    client.create_collection("words", {}, sparse_vectors_config=words)
    made = RefinedRetriever.from_collection(
        client, "words", "text", sparse_query_fn=sparse, vector_store_query_mode="mmr", grader=LabelGrader()
    )
    with pytest.raises(ValueError, match="'mmr' compares dense vectors, but this searches a sparse one"):
        made.retrieve("a")
    params = models.VectorParams(size=SIZE, distance=models.Distance.EUCLID)
    client.create_collection("both", {"d": params}, sparse_vectors_config=words)
    for fusion in ("rrf", "dbsf"):
        made = RefinedRetriever.from_collection(
            client,
            "both",
            "text",
            "d",
            sparse_query_fn=sparse,
            vector_store_query_mode="hybrid",
            vector_store_kwargs={"fusion": fusion},
            grader=LabelGrader(),
        )
        if fusion == "rrf":
            assert made.retrieve(question(0)) == []
    with pytest.raises(ValueError, match="fusion='dbsf' adds up scores"):
        made.retrieve(question(0))


def test_points_that_are_asked_for_know_their_group_whether_or_not_they_bring_nodes(place):
    made = retriever(place, filled(place), vector_store_kwargs={"group_by": "topic"})
    collection = made._collection

    async def found(payload):
        query = await collection.query(question(0), Embedding(None))
        return await collection.those(query, [1, 2], payload=payload)

    bare, whole = (one.get() for one in run([found(False), found(True)]))
    assert len(bare.nodes) == 0
    assert bare.groups == whole.groups
    assert None not in bare.groups


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_the_next_is_always_the_best_of_those_left(limit, threshold, seed):
    rows = np.random.default_rng(seed).normal(size=(7, 3))
    relevance, overlap = rows[:, 0], rows @ rows.T
    chosen = diverse(relevance, overlap, threshold, limit)
    assert len({*chosen}) == len(chosen) == min(limit, 7)
    assert chosen[0] == relevance.argmax()
    for count in range(1, len(chosen)):
        left = [at for at in range(7) if at not in chosen[:count]]
        values = [threshold * relevance[at] - (1 - threshold) * overlap[at, chosen[:count]].max() for at in left]
        assert left[int(np.argmax(values))] == chosen[count]
