"""A formula over the score and the payload, by which both searches rank."""

from __future__ import annotations

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from llama_index_refine import RefinedRetriever
from tests.places import SIZE, LabelGrader, points, question, vectors

# The later of two hundred documents count for up to 0.4 of a cosine more.
LATER = {"sum": ["$score", {"mult": [0.002, "number"]}]}


def filled(place) -> str:
    name = place.create(models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    place.write(name, points())
    return name


def retriever(place, name, boost=None, grader=None, **options):
    kwargs = {"boost": boost} if boost is not None else {}
    options = {"trust": 1.0, "vector_store_kwargs": kwargs, **options}
    return RefinedRetriever.from_collection(
        place.client, name, "meta.abstract", grader=grader or LabelGrader(), **options
    )


def worth(vector) -> np.ndarray:
    """(200,) what the formula says of each document."""
    rows = vectors() / np.linalg.norm(vectors(), axis=1, keepdims=True)
    return rows @ (np.asarray(vector) / np.linalg.norm(vector)) + 0.002 * np.arange(len(rows))


def numbers(nodes) -> list[int]:
    return [entry.node.metadata["number"] for entry in nodes]


def test_both_searches_rank_by_it_and_so_does_what_is_graded(place):
    name, plain, boosted = filled(place), LabelGrader(), LabelGrader()
    retriever(place, name, grader=plain, early_stop=False).refine(question(0))
    found = retriever(place, name, LATER, boosted, early_stop=False, on_error="raise").refine(question(0))
    first = worth(question(0).embedding)
    assert numbers(found.nodes_before) == np.argsort(-first)[:10].tolist()
    assert [entry.score for entry in found.nodes_before] == pytest.approx(np.sort(-first)[:10] * -1, abs=1e-4)
    shown = [np.mean([node.metadata["number"] for node in one.seen]) for one in (boosted, plain)]
    assert shown[0] > shown[1] + 20
    ungraded = [at for at in numbers(found.nodes) if at not in numbers(found.graded_nodes)]
    values = worth(found.vector)[ungraded]
    assert values.tolist() == sorted(values, reverse=True)
    # Grades still move documents: what is irrelevant is not first, however late it is.
    assert found.grade_of.get(found.nodes[0].node_id, 1.0) == 1.0
    assert found.gained


def test_a_field_that_points_lack_has_its_default_or_is_named(place):
    name = filled(place)
    formula = {"sum": ["$score", {"mult": [0.1, "likes"]}]}
    # Edge says only that it cannot.
    with pytest.raises(ValueError, match="boost cannot be computed" if place.kind == "edge" else "likes"):
        retriever(place, name, formula).refine(question(0))
    given = models.FormulaQuery(formula=formula, defaults={"likes": 2.0})
    with_default = retriever(place, name, given).refine(question(0))
    plain = retriever(place, name).refine(question(0))
    assert numbers(with_default.nodes_before) == numbers(plain.nodes_before)
    assert with_default.nodes_before[0].score == pytest.approx(plain.nodes_before[0].score + 0.2, abs=1e-4)


def test_what_goes_by_similarity_alone_refuses_it():
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    client.upsert("c", points())
    made = RefinedRetriever.from_collection(
        client, "c", "meta.abstract", grader=LabelGrader(), vector_store_kwargs={"boost": LATER}
    )
    with pytest.raises(ValueError, match="leave boost out of vector_store_kwargs"):
        made.select(question(0))
    for boost, options, told in (
        ({"add": ["$score", 1.0]}, {}, "boost is not a formula that Qdrant takes"),
        (LATER, {"vector_store_query_mode": "mmr"}, "boost ranks by a formula"),
    ):
        with pytest.raises(ValueError, match=told):
            RefinedRetriever.from_collection(client, "c", "text", vector_store_kwargs={"boost": boost}, **options)
