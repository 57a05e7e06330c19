"""Points that are odd, ids that are spelled otherwise, and queries without words: none costs the rest."""

from __future__ import annotations

import logging
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from llama_index_refine import BaseGrader, RefinedRetriever
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.points import points_of
from tests.places import SIZE, LabelGrader, points, question, vectors

COSINE = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
SPELLINGS = {
    "as Qdrant writes it": str,
    "without hyphens": lambda one: one.hex,
    "upper case": lambda one: str(one).upper(),
    "upper case without hyphens": lambda one: one.hex.upper(),
    "a URN": lambda one: one.urn,
    "in braces": lambda one: f"{{{one}}}",
}
NO_IDS = ["", "not an id", "-1", "1.5", "²", "٣", str(2**64), "7" * 33, "00000000-0000-0000-0000-00000000000", "{7}"]


def judged_of(refinement) -> set[str]:
    return {entry.node_id for entry in refinement.graded_nodes}


# Ids


@given(st.uuids(), st.sampled_from(list(SPELLINGS)))
def test_all_spellings_of_an_id_are_the_same(one, spelling):
    written = SPELLINGS[spelling](one)
    assert same_id(written) == str(one)
    assert points_of(written)[0] == str(one)
    assert set(points_of(written)) == {str(one), written}


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_numbers(number):
    assert points_of(str(number)) == [number]
    assert same_id(str(number)) == str(number)


@pytest.mark.parametrize("odd", NO_IDS)
def test_what_no_point_can_be_called_names_no_point(odd):
    assert points_of(odd) == []
    assert same_id(odd) == odd


def test_thirty_two_digits_are_a_uuid_even_if_all_are_decimal():
    assert points_of("12345678901234567890123456789012")[0] == "12345678-9012-3456-7890-123456789012"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_judgements_and_node_ids_may_be_spelled_otherwise(place, spelling):
    name = place.create(COSINE)
    place.write(name, points(uuids=True))
    written = [SPELLINGS[spelling](uuid.UUID(int=at + 1)) for at in range(200)]
    # The last ones, which are not among those shown.
    far = sorted(range(200), key=lambda at: question(0).embedding @ vectors()[at])[:3]
    grader = FeedbackGrader({"0": {written[at]: float(at % 5 == 0) for at in far}}, LabelGrader())
    refined = RefinedRetriever.from_collection(place.client, name, "meta.abstract", grader=grader, on_error="raise")
    refinement = refined.refine(question(0))
    assert {str(uuid.UUID(int=at + 1)) for at in far} <= judged_of(refinement)
    assert all(refinement.grade_of[str(uuid.UUID(int=at + 1))] == float(at % 5 == 0) for at in far)
    only = RefinedRetriever.from_collection(place.client, name, "meta.abstract", grader=grader, node_ids=written[:30])
    assert {entry.node.metadata["number"] for entry in only.retrieve(question(0))} <= set(range(30))
    assert len(only.retrieve(question(0))) == 10


@pytest.mark.parametrize("spelling", ["without hyphens", "upper case"])
def test_nodes_that_llama_index_wrote_under_another_spelling_are_judged_by_it(spelling):
    store = QdrantVectorStore("c", client=QdrantClient(":memory:"))
    written = [SPELLINGS[spelling](uuid.UUID(int=at + 1)) for at in range(40)]
    rows = vectors().tolist()
    store.add([TextNode(id_=written[at], text=f"n{at}", embedding=rows[at]) for at in range(40)])
    judgements = {"0": {name: float(at % 5 == 0) for at, name in enumerate(written)}}
    grader = FeedbackGrader(judgements)
    refinement = RefinedRetriever(store, grader=grader, trust=1.0, early_stop=False).refine(question(0))
    assert len(refinement.graded_nodes) == 20
    assert len(RefinedRetriever(store, grader=FeedbackGrader(), node_ids=written[:7]).retrieve(question(0))) == 7


def test_ids_that_no_point_can_have_cost_nothing(place):
    name = place.create(COSINE)
    place.write(name, points())
    grader = FeedbackGrader({"0": {**dict.fromkeys(NO_IDS, 1.0), "195": 1.0, "196": 0.0}}, LabelGrader())
    refined = RefinedRetriever.from_collection(
        place.client, name, "meta.abstract", grader=grader, node_ids=[*filter(None, NO_IDS), *map(str, range(150, 200))]
    )
    refinement = refined.refine(question(0))
    assert refinement.refined
    assert {"195", "196"} <= judged_of(refinement)


def test_node_ids_that_no_point_can_have_are_refused_where_they_are_all():
    with pytest.raises(ValueError, match=r"node_ids has no id that a point can have, .*: 'not an id'"):
        RefinedRetriever.from_collection(QdrantClient(":memory:"), "c", "text", node_ids=["not an id", "-1"])


# Points without text


ODD = [{}, {"image_url": "https://example.org/cat.png"}, {"text": None, "topic": "0"}, {"_node_content": "{"}]


class Lengths(BaseGrader):
    def grade(self, query, nodes):
        return [float(len(node.get_content()) > 3) for node in nodes]


@pytest.mark.parametrize("how", ["retrieve", "rounds", "batch"])
async def test_points_without_the_text_field_are_returned_without_text(place, how, caplog):
    name = place.create(COSINE)
    rows = vectors().tolist()
    place.write(
        name,
        [models.PointStruct(id=at, vector=rows[at], payload={"text": f"text {at}"}) for at in range(30)]
        + [models.PointStruct(id=30 + at, vector=rows[at], payload=payload) for at, payload in enumerate(ODD)],
    )
    refined = RefinedRetriever.from_collection(
        place.client, name, "text", grader=Lengths(), similarity_top_k=34, feedback_top_k=34, rounds=2, on_error="raise"
    )
    with caplog.at_level(logging.WARNING):
        if how == "batch":
            (nodes, _) = refined.retrieve_batch([question(0), question(1)])
        else:
            nodes = refined.retrieve(question(0)) if how == "retrieve" else await refined.aretrieve(question(0))
    texts = {int(entry.node_id): entry.node.get_content() for entry in nodes}
    assert texts == {**{at: f"text {at}" for at in range(30)}, **dict.fromkeys(range(30, 34), "")}
    (pictured,) = [entry.node for entry in nodes if entry.node_id == "31"]
    assert pictured.metadata == ODD[1]
    assert sum("has no text" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("payload", ODD)
def test_a_foreign_point_among_llama_indexs_own_is_returned_without_text(payload):
    client = QdrantClient(":memory:")
    store = QdrantVectorStore("c", client=client)
    rows = vectors().tolist()
    store.add([TextNode(text=f"text {at}", embedding=rows[at]) for at in range(20)])
    client.upsert("c", [models.PointStruct(id=7, vector=rows[0], payload=payload)])
    refined = RefinedRetriever(store, grader=Lengths(), similarity_top_k=30, on_error="raise")
    nodes = refined.retrieve(question(0))
    assert len(nodes) == 21
    (odd,) = [entry.node for entry in nodes if entry.node_id == "7"]
    assert odd.get_content() == ""
    assert "_node_content" not in odd.metadata


# Queries without words


def test_an_empty_query_that_brings_its_vector_is_searched_by_it(place):
    name = place.create(COSINE)
    place.write(name, points())
    refined = RefinedRetriever.from_collection(place.client, name, "meta.abstract", grader=LabelGrader())
    assert len(refined.retrieve(QueryBundle("", embedding=question(0).embedding))) == 10
