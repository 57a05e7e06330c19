"""Examples that a call brings: what they are like, and unlike."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters

from llama_index_refine import FeedbackGrader, QueryWithExamples, RefinedRetriever
from llama_index_refine.retrieval.grading import reliability_of
from tests.places import LabelGrader, Place, hits, points, question
from tests.planted import Planted, TopicGrader

PLANTED = Planted()
NODES = PLANTED.nodes()
OF = [[node.node_id for node in NODES if node.metadata["topic"] == topic] for topic in range(8)]


def retriever(grader=None, **kwargs):
    return RefinedRetriever(PLANTED.store(), grader=grader or FeedbackGrader(), similarity_top_k=20, **kwargs)


def ids(nodes):
    return [entry.node.node_id for entry in nodes]


def test_examples_alone_move_the_query_in_every_place(place: Place):
    from qdrant_client import models

    name = place.create(models.VectorParams(size=16, distance=models.Distance.COSINE))
    place.write(name, points())
    refined = RefinedRetriever.from_collection(
        place.client, name, text_key="meta.abstract", grader=FeedbackGrader(), similarity_top_k=20
    )
    bundle = question(2)
    before = hits(refined.retrieve(bundle), 2)
    like, unlike = ["2", "7", "12"], ["3", "8", "13"]
    found = refined.refine(bundle, like=like, unlike=unlike)
    assert hits(found.nodes, 2) > before
    assert {entry.node_id: grade for entry, grade in zip(found.graded_nodes, found.grades, strict=True)} == {
        **dict.fromkeys(like, 1.0),
        **dict.fromkeys(unlike, 0.0),
    }
    assert ids(found.nodes) == ids(refined.retrieve(bundle, like=like, unlike=unlike))
    assert hits(refined.retrieve(bundle), 2) == before


async def test_every_way_of_asking_takes_them():
    refined = retriever()
    bundle = PLANTED.query(3)
    examples = {"like": OF[3][:3], "unlike": OF[4][:2]}
    brought = QueryWithExamples(bundle.query_str, embedding=bundle.embedding, **examples)
    expected = ids(refined.retrieve(bundle, **examples))
    assert expected != ids(refined.retrieve(bundle))
    assert ids(await refined.aretrieve(bundle, **examples)) == expected
    assert ids(refined.refine(bundle, **examples).nodes) == expected
    assert ids((await refined.arefine(bundle, **examples)).nodes) == expected
    assert ids(refined.retrieve(brought)) == expected
    plain, with_them = refined.retrieve_batch([bundle, brought])
    assert (ids(plain), ids(with_them)) == (ids(refined.retrieve(bundle)), expected)
    plain, with_them = await refined.aretrieve_batch([bundle, brought])
    assert ids(with_them) == expected
    assert ids(refined.retrieve(brought, like=OF[3][3:4])) == ids(
        refined.retrieve(bundle, like=OF[3][:4], unlike=OF[4][:2])
    )


def test_one_example_is_enough_where_there_is_a_background():
    refined = retriever()
    before, after = [], []
    for topic in range(8):
        first = refined.retrieve(PLANTED.query(topic))
        liked = next(entry.node.node_id for entry in first if entry.node.metadata["topic"] == topic)
        found = refined.refine(PLANTED.query(topic), like=[liked])
        assert found.refined
        before.append(PLANTED.precision(first, topic))
        after.append(PLANTED.precision(found.nodes, topic))
    assert np.mean(after) > np.mean(before) + 0.05
    assert not retriever(background_size=0).refine(PLANTED.query(0), like=OF[0][:1]).refined


def test_the_teacher_is_not_asked_about_them_and_grades_as_many_others():
    teacher = TopicGrader()
    refined = RefinedRetriever(PLANTED.store(), grader=teacher, feedback_top_k=12, early_stop=False)
    bundle = PLANTED.query(1)
    first = ids(refined.refine(bundle).nodes_before)
    teacher.shown.clear()
    found = refined.refine(bundle, like=first[:2], unlike=first[2:3])
    shown = [node for wave in teacher.shown for node in wave]
    assert not set(shown) & set(first[:3])
    assert len(shown) + 3 == len(found.graded_nodes)
    assert 9 <= len(shown) <= 12
    assert found.grade_of[first[2]] == 0


def test_they_are_followed_in_full_and_are_no_part_of_the_teachers_record():
    """A teacher that knows nothing is not believed for it, nor by what people say of other nodes."""
    teacher = TopicGrader()
    refined = RefinedRetriever(PLANTED.store(), grader=teacher, feedback_top_k=6)
    refined.refine(PLANTED.query(1), like=OF[1][20:40])
    with_examples = reliability_of(teacher).belief
    other = TopicGrader()
    RefinedRetriever(PLANTED.store(), grader=other, feedback_top_k=6).refine(PLANTED.query(1))
    assert with_examples.queries == reliability_of(other).belief.queries == 1
    refined = RefinedRetriever(PLANTED.store(), grader=TopicGrader(), trust=0.0, similarity_top_k=20)
    assert ids(refined.refine(PLANTED.query(1)).nodes) == ids(refined.refine(PLANTED.query(1)).nodes_before)
    moved = refined.refine(PLANTED.query(1), like=OF[1][20:30])
    assert PLANTED.precision(moved.nodes, 1) > PLANTED.precision(moved.nodes_before, 1)


def test_what_the_filter_excludes_is_neither_shown_nor_returned_nor_counted(caplog):
    teacher = TopicGrader()
    filters = MetadataFilters(filters=[ExactMatchFilter(key="half", value=1)])
    outside = [node.node_id for node in NODES if node.metadata["topic"] == 2 and node.metadata["half"] == 0]
    refined = RefinedRetriever(PLANTED.store(), grader=teacher, filters=filters, similarity_top_k=40, trust=1.0)
    expected = refined.refine(PLANTED.query(2))
    with caplog.at_level(logging.WARNING, "llama_index_refine"):
        found = refined.refine(PLANTED.query(2), like=outside[:5], unlike=["5e1f0000-0000-4000-8000-000000000000"])
    assert found.vector == pytest.approx(expected.vector, abs=1e-6)
    assert not set(outside) & {*ids(found.nodes), *ids(found.graded_nodes), *(n for s in teacher.shown for n in s)}
    assert any("6 of the examples were not found" in failure for failure in found.failures)
    assert "6 of the examples" in caplog.text


def test_a_teacher_that_fails_leaves_the_examples():
    class Broken(LabelGrader):
        def grade(self, query, nodes):
            return [None for _ in nodes]

    found = retriever(Broken()).refine(PLANTED.query(6), like=OF[6][:4], unlike=OF[7][:4])
    assert found.refined
    assert PLANTED.precision(found.nodes, 6) > PLANTED.precision(found.nodes_before, 6)


def test_ids_are_read_in_every_spelling():
    refined = retriever()
    spelled = [node_id.upper().replace("-", "") for node_id in OF[3][:3]]
    assert ids(refined.retrieve(PLANTED.query(3), like=spelled)) == ids(
        refined.retrieve(PLANTED.query(3), like=OF[3][:3])
    )


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"like": "a-1"}, "like must be a list of node ids"),
        ({"unlike": [3]}, "unlike must be a list of node ids"),
        ({"like": ["a", "b"], "unlike": ["b"]}, "like and unlike must not name the same node; both name b"),
    ],
)
def test_bad_examples_are_named(examples, message):
    with pytest.raises(ValueError, match=message):
        retriever().retrieve(PLANTED.query(0), **examples)
    with pytest.raises(ValueError, match=message):
        QueryWithExamples("q", **examples)


def test_a_bundle_keeps_what_it_brought():
    bundle = QueryBundle("q", custom_embedding_strs=["r"], embedding=np.ones(32).tolist())
    refined = retriever()
    assert refined.refine(bundle, like=OF[0][:2]).query == pytest.approx(np.ones(32))


def test_examples_may_come_one_by_one_and_none_is_no_list():
    assert QueryWithExamples("a", like=(one for one in "12")).like == ["1", "2"]
    for wrong in (None, 5, "1", [1]):
        with pytest.raises(ValueError, match="unlike must be a list of node ids"):
            QueryWithExamples("a", unlike=wrong)
