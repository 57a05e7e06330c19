"""Grades that are not asked for, because they would hardly change what is returned."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.schema import QueryBundle

from llama_index_refine import QueryRefiner, RefinedRetriever
from llama_index_refine.display.moves import effect
from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.qdrant.points import Found, Vectors
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import DenseQuery
from llama_index_refine.refining.trust import FixedTrust, Reliability
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.ranking import RefinedRanking
from tests.planted import TOPICS, Planted, TopicGrader

PLANTED = Planted()


class Guesser(BaseGrader):
    """Grades by chance."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def grade(self, query, nodes):
        return [float(self.rng.random() < 0.5) for _ in nodes]


def refined_all(grader=None, planted=PLANTED, **options):
    retriever = RefinedRetriever(planted.store(), grader=grader or TopicGrader(), **options)
    return [retriever.refine(planted.query(topic)) for topic in range(TOPICS)]


def test_calls_are_saved_and_the_list_is_as_good():
    precision = []
    for planted in (PLANTED, Planted(1), Planted(2), Planted(3)):
        stopped, full = (refined_all(planted=planted, trust=1.0, early_stop=stops) for stops in (True, False))
        assert all(len(found.grades) + found.saved_grades == 20 for found in stopped)
        assert np.mean([found.saved_grades for found in stopped]) > 4
        assert not any(found.saved_grades for found in full)
        shares = [
            [planted.precision(found.nodes, topic) for topic, found in enumerate(each)] for each in (stopped, full)
        ]
        precision.append([np.mean(each) for each in shares])
    stopping, grading = np.mean(precision, axis=0)
    assert stopping >= grading - 0.02


def test_a_new_teacher_s_first_two_queries_are_graded_in_full():
    saved = [found.saved_grades for found in refined_all()]
    assert saved[:2] == [0] * 2
    assert any(saved[2:])


def test_what_is_graded_next_is_what_would_change_the_list_and_not_what_is_surely_relevant():
    rng, query = np.random.default_rng(0), np.eye(32, dtype=np.float32)[0]
    near, far = ((shift * np.eye(32)[1] + 0.2 * rng.normal(size=(4, 32)) + query) for shift in (0.8, -0.8))
    documents = np.r_[near, far].astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    refinement = QueryRefiner().refine(query, documents, np.r_[np.ones(4), np.zeros(4)], rng.normal(size=(30, 32)))
    scores = documents @ (refinement.vector / np.linalg.norm(refinement.vector))
    # One ahead of all that was graded relevant, the others close together between these and what was not.
    between = (scores[:4].mean() + scores[4:].mean()) / 2 + refinement.tau * np.linspace(1, -1, 13)
    found = Found([*range(14)], [scores.max() + 3 * refinement.tau, *between], [], Vectors())
    view = DenseQuery(query).view(Space("", 32, "cosine"))
    feedback = Feedback(QueryBundle("q"), DenseQuery(query), view, Account(), grades=[1.0] * 4 + [0.0] * 4)

    ranking = RefinedRanking(feedback, refinement, DenseQuery(refinement.vector), found, 400, FixedTrust(1.0))

    def chosen(own_grade: float, saves: bool = True) -> list[int]:
        return ranking.choose(5, 10, 10, own_grade, saves)

    assert chosen(1.1) == sorted(chosen(1.1))
    assert 0 < len(chosen(1.1)) <= 5
    assert 0 not in chosen(1.1)
    assert chosen(0.0) == []
    assert len(chosen(1.1, saves=False)) == 5
    assert 0 not in chosen(1.1, saves=False)


def test_what_was_saved_is_said():
    found = next(found for found in refined_all(trust=1.0) if found.saved_grades)
    assert f"{len(found.grades)} grades" in effect(found)
    assert f", {found.saved_grades} saved" in effect(found)
    assert found.to_dict()["saved_grades"] == found.saved_grades
    assert found.reason is None


@pytest.mark.parametrize(
    "options",
    [
        {"early_stop": False},
        {"similarity_top_k": 21},
        {"refiner": QueryRefiner.paper()},
        {"refiner": QueryRefiner(own_grade=0.0)},
    ],
    ids=["told not to", "longer than what is graded", "published", "own grades do not count"],
)
def test_all_grades_are_asked_for_where_it_cannot_be_told(options):
    assert [len(found.grades) for found in refined_all(**options)] == [20] * TOPICS


def test_a_query_is_taken_into_the_record_once_however_many_rounds_it_took():
    record = Reliability()
    found = refined_all(trust=record)
    assert max(each.rounds for each in found) > 1
    assert record.belief.varied <= TOPICS


def test_a_teacher_that_is_not_followed_is_asked_once():
    assert {found.rounds for found in refined_all(Guesser(), trust=0.0)} == {1}


async def test_asynchronously_and_in_batches_the_same_is_saved():
    retriever = RefinedRetriever(PLANTED.store(), grader=TopicGrader(), trust=1.0)
    queries = [PLANTED.query(topic) for topic in range(TOPICS)]
    alone = [retriever.refine(query).saved_grades for query in queries]
    assert [found.saved_grades for found in retriever.refine_batch(queries)] == alone
    assert [(await retriever.arefine(query)).saved_grades for query in queries] == alone
