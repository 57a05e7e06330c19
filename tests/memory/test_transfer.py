"""What similar queries lend, and the bound on how far they lead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.memory.remembered import RememberedGrade, RememberedQuery, opinions
from llama_index_refine.memory.transfer import (
    ASTRAY,
    CARRIED,
    ENOUGH,
    OF_TEACHER,
    carry,
    follows,
    led,
    meant_the_same,
    similarity_of,
)
from llama_index_refine.similarity import METRICS


def remembered(vector=(1.0, 0.0), **grades) -> RememberedQuery:
    rows = tuple(RememberedGrade(node, "text", grade) for node, grade in grades.items())
    return RememberedQuery("scope", "query", np.array(vector, dtype=np.float32), rows, 0.0, follows=0.5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.001, 100), metric=st.sampled_from(METRICS))
def test_no_memory_leads_a_query_further_than_the_bound(seed, scale, metric):
    rng = np.random.default_rng(seed)
    query, own, towards = rng.normal(size=(3, 12))
    towards = own + scale * towards
    documents = rng.normal(size=(30, 12)) + 0.5
    found = led(own, towards, query, documents, metric)
    if metric == "cosine":
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(own))
        own, towards, query, found = (vector / np.linalg.norm(vector) for vector in (own, towards, query, found))
        documents = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    centred = documents - documents.mean(0)
    radius = np.sqrt(np.square(centred).sum(1).mean())
    limit = ASTRAY * (centred @ query).std()
    assert np.linalg.norm(found - own) * radius <= limit * (1 + 1e-6)
    # No document gains on the mean one by more than its distance from the mean allows, so none passes one that is
    # further ahead than that.
    gains = centred @ (found - own)
    assert (np.abs(gains) <= limit * np.linalg.norm(centred, axis=1) / radius * (1 + 1e-6)).all()
    if np.linalg.norm(towards - own) * radius < limit:
        assert found == pytest.approx(towards)
    else:
        assert np.linalg.norm(found - towards) < np.linalg.norm(own - towards)


def test_where_nothing_leads_nothing_moves():
    own = np.array([1.0, 2.0, 0.5])
    documents = np.random.default_rng(0).normal(size=(5, 3))
    for metric in METRICS:
        assert led(own, own, own, documents, metric) == pytest.approx(own)
        assert led(own, -own + 1, own, documents[:1], metric) == pytest.approx(own)


def test_what_all_vectors_have_in_common_makes_no_queries_similar():
    rng = np.random.default_rng(0)
    one, other, common = rng.normal(size=(3, 64))
    documents = rng.normal(size=(30, 64)) + 10 * common
    crowded = [remembered(other + 10 * common), remembered(one + 0.1 * other + 10 * common)]
    far, near = similarity_of(one + 10 * common, crowded, documents)
    assert far < 0.4
    assert near > 0.9


def test_agreement_decides_whether_a_similar_query_meant_the_same():
    theirs = {"a": 1.0, "b": 0.0, "c": 1.0}
    assert meant_the_same(0.6, theirs, {}) == pytest.approx(0.5)
    assert meant_the_same(0.3, theirs, {}) < 0.05
    agreed = meant_the_same(0.6, theirs, {"a": 1.0, "b": 0.0, "d": 1.0})
    assert agreed > 0.7
    assert meant_the_same(0.6, theirs, {**theirs, "d": 0.0}) > agreed
    assert meant_the_same(0.9, theirs, {"a": 0.0, "b": 1.0, "c": 0.0}) < ENOUGH
    assert meant_the_same(1.0, theirs, {"x": 1.0, "y": 0.0}) < ENOUGH, "nothing was graded for both"
    assert meant_the_same(0.6, theirs, {"a": 1.0, "c": 1.0}) > ENOUGH, "what is relevant to both says most"
    assert meant_the_same(0.6, theirs, {"x": 1.0, "y": 0.0}) == pytest.approx(0.5)


def test_people_s_word_replaces_the_teacher_s_and_is_believed_more():
    similar = remembered(a=1.0, b=0.0)
    own = {"a": 1.0, "b": 0.0}
    teacher = remembered(**own, c=0.0, d=1.0)
    person = RememberedGrade("c", "text", 1.0, people=True)
    judged = RememberedQuery("scope", "query", similar.vector, (*teacher.grades, person), 0.0, follows=0.5)
    plain = carry([(teacher, 0.9)], own)
    assert set(plain) == {"c", "d"}
    assert plain["c"].grade == 0
    assert OF_TEACHER * ENOUGH <= plain["c"].belief <= OF_TEACHER
    lent = carry([(teacher, 0.9), (judged, 0.9)], own)
    assert lent["c"].grade == 1
    assert lent["c"].belief > lent["d"].belief


def test_what_disagrees_lends_nothing_and_no_more_is_lent_than_that():
    own = {"a": 1.0, "b": 0.0}
    assert carry([(remembered(a=0.0, b=1.0, c=1.0), 0.8)], own) == {}
    many = {f"n{at}": 1.0 for at in range(100)}
    assert len(carry([(remembered(**own, **many), 0.9)], own)) == CARRIED


def test_a_query_whose_grades_do_not_follow_it_lends_only_what_people_said():
    own = {"a": 1.0, "b": 0.0}
    followed = remembered(**own, c=1.0)
    person = RememberedGrade("d", "text", 1.0, people=True)
    for how in (-0.4, -1.0, float("nan")):
        assert carry([(replace(followed, follows=how), 0.9)], own) == {}
    people = [RememberedGrade(node_id, "text", grade, people=True) for node_id, grade in own.items()]
    judged = replace(followed, follows=-0.4, grades=(*followed.grades, *people, person))
    assert set(carry([(judged, 0.9)], own)) == {"d"}
    assert set(carry([(followed, 0.9)], own)) == {"c"}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=2, max_size=20))
def test_upside_down_grades_follow_a_query_the_other_way(rows):
    grades, similarities = (np.array(column) for column in zip(*rows, strict=True))
    there = follows(grades, similarities)
    assert -1 <= there <= 1
    if np.ptp(grades) > 1e-3 and np.ptp(similarities) > 1e-3:
        assert follows(1 - grades, similarities) == pytest.approx(-there, abs=1e-6)


def test_grades_that_are_all_alike_follow_where_they_are_relevant():
    assert follows(np.ones(5), np.arange(5.0)) == 1
    assert follows(np.zeros(5), np.arange(5.0)) == -1
    assert follows(np.array([0.0, 1.0]), np.ones(2)) == 0


def test_one_node_s_grades_are_weighed():
    said = [
        RememberedGrade("a", "text", 0.0, spread=0.2, time=1.0),
        RememberedGrade("a", "text", 1.0, people=True, time=2.0, user="anna"),
        RememberedGrade("a", "text", 0.5, people=True, time=3.0, user="ben"),
        RememberedGrade("b", "old", 0.0, time=1.0),
        RememberedGrade("b", "new", 1.0, spread=0.1, time=2.0),
    ]
    found = opinions(said)
    assert (found["a"].grade, found["a"].people, found["a"].spread) == (0.75, True, None)
    assert (found["b"].grade, found["b"].content, found["b"].spread) == (1.0, "new", 0.1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 20), text=st.text())
def test_a_query_comes_back_as_it_was_written(seed, size, text):
    rng = np.random.default_rng(seed)
    grade = RememberedGrade(text or "a", "hash", float(rng.random()), 0.1, True, 5.0, text, None)
    query = RememberedQuery(
        "scope", text, rng.normal(size=size).astype(np.float32), (grade,), 7.0, 20, (text,), "{}", 0.25
    )
    read = RememberedQuery.from_dict(query.to_dict())
    assert read is not None
    assert read.to_dict() == query.to_dict()
    assert np.array_equal(read.vector, query.vector)
