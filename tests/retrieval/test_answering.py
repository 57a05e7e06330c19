"""Whether anything that is returned answers the query."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import MockEmbedding
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_refine import RefinedRetriever
from llama_index_refine.display.moves import effect
from llama_index_refine.refining.relevance import Ranking, fit_relevance
from tests.planted import Planted, TopicGrader
from tests.small_index import BrokenGrader

PLANTED = Planted()
STORE = PLANTED.store()


def refined(topic, there, **options):
    """Ask for a topic whose documents are there, or not."""
    operator = FilterOperator.GTE if there else FilterOperator.NE
    filters = MetadataFilters(filters=[MetadataFilter(key="topic", value=0 if there else topic, operator=operator)])
    options = {"grader": TopicGrader(), "trust": 1.0, **options}
    return RefinedRetriever(STORE, filters=filters, **options).refine(PLANTED.query(topic))


@pytest.mark.parametrize("score", ["similarity", "probability"])
def test_it_is_likely_where_documents_are_there_and_not_where_they_are_filtered_away(score):
    for topic in range(3):
        with_them, without = (refined(topic, there, score=score).answerable for there in (True, False))
        assert with_them > 0.9
        assert without < 0.2


def test_grades_that_are_all_low_do_not_answer_because_some_are_a_little_higher():
    """What moves the query is how a grade stands among the others; what answers it is the grade as it was given."""

    class Doubtful(TopicGrader):
        def grade(self, query, nodes):
            return [0.02 + 0.1 * (at % 3) for at, _ in enumerate(nodes)]

    for topic in range(3):
        assert refined(topic, False, grader=Doubtful()).answerable < 0.5


def test_below_the_least_probability_nothing_is_returned_and_the_reason_says_so():
    found, kept = refined(1, False, answerable=0.3), refined(1, True, answerable=0.3)
    assert found.nodes == []
    assert f"{found.answerable:.2f}" in found.reason
    assert "answerable" in found.reason
    assert len(found.graded_nodes) > 10
    assert effect(found).startswith("Nothing returned")
    assert json.loads(found.to_json())["answerable"] == found.answerable
    assert kept.reason is None
    assert len(kept.nodes) == 10


def test_nothing_is_withheld_where_nobody_graded():
    found = refined(1, False, answerable=1.0, grader=BrokenGrader())
    assert found.answerable is None
    assert len(found.nodes) == 10


def test_a_split_query_is_answered_where_one_of_its_parts_is():
    class Both(BaseQuestionGenerator):
        def generate(self, tools, query):
            return [SubQuestion(sub_question=text, tool_name="documents") for text in ("topic 1", "topic 2")]

        async def agenerate(self, tools, query):
            return self.generate(tools, query)

        def _get_prompts(self):
            return {}

        def _update_prompts(self, prompts):
            pass

    class Topics(MockEmbedding):
        def _get_query_embedding(self, query):
            return PLANTED.queries[int(query[-1])].tolist()

    filters = MetadataFilters(filters=[MetadataFilter(key="topic", value=2, operator=FilterOperator.NE)])
    retriever = RefinedRetriever(
        STORE, Topics(embed_dim=32), TopicGrader(), filters=filters, decompose=Both(), trust=1.0, answerable=0.3
    )
    found = retriever.refine("topics 1")
    assert found.answerable == max(part.answerable for part in found.parts) > 0.9
    assert min(part.answerable for part in found.parts) < 0.3
    assert found.nodes


@pytest.mark.parametrize("wrong", [-0.1, 1.1, "0.3", True])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match=r"answerable must be a probability in \[0, 1\]"):
        RefinedRetriever(STORE, answerable=wrong)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(0, 5))
def test_more_documents_are_more_likely_to_hold_an_answer(grades, more):
    ranking = Ranking(np.linspace(3, -3, 60), np.ones(60))
    places = np.linspace(3, 1, len(grades))
    relevance = fit_relevance(ranking, places, grades)
    rest = np.linspace(2, 0, more)
    chances = [relevance.of_any(rest[:count], places, grades) for count in range(more + 1)]
    assert all(0 <= chance <= 1 for chance in chances)
    assert all(low <= high + 1e-12 for low, high in pairwise(chances))
    # One of them is as likely as the likeliest, and no likelier than all of them together.
    each = relevance.of_graded(places, grades)
    assert each.max() - 1e-9 <= relevance.of_any([], places, grades) <= each.sum() + 1e-9
    assert relevance.of_any([]) == 0
