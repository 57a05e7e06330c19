"""What grades say about the relevance of the documents without one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.refining.relevance import Ranking, fit_relevance


def drawn(seed, count=4000, slope=2.0, midpoint=2.0, scale=0.1, centre=0.3):
    """Similarities of a collection, and which of its documents are relevant."""
    rng = np.random.default_rng(seed)
    standard = rng.normal(size=count)
    chance = 1 / (1 + np.exp(-slope * (standard - midpoint)))
    return centre + scale * standard, rng.random(count) < chance


def fitted(similarities, relevant, count=40, trust=1.0, noise=0.0, seed=0):
    order = np.argsort(-similarities)
    rng = np.random.default_rng(seed)
    graded = order[np.r_[:20, rng.choice(np.arange(20, 400), count - 20, replace=False)]]
    grades = np.where(rng.random(count) < noise, ~relevant[graded], relevant[graded]).astype(float)
    ranking = Ranking(np.sort(similarities)[::-1], np.ones(len(similarities)))
    return fit_relevance(ranking, similarities[graded], grades, trust), graded, grades


def test_the_probabilities_are_right_on_average():
    errors = []
    for seed in range(12):
        similarities, relevant = drawn(seed)
        relevance, _, _ = fitted(similarities, relevant, seed=seed)
        top = np.argsort(-similarities)[:200]
        errors.append(relevance.probability(similarities[top]).mean() - relevant[top].mean())
    assert abs(np.mean(errors)) < 0.05
    assert np.abs(errors).max() < 0.25


@given(st.lists(st.tuples(st.floats(-3, 6), st.floats(0, 1)), max_size=30), st.floats(0, 1), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_they_rise_with_the_similarity_and_stay_in_range(known, trust, seed):
    similarities = np.sort(np.random.default_rng(seed).normal(size=300))[::-1]
    places, grades = [place for place, _ in known], [grade for _, grade in known]
    relevance = fit_relevance(Ranking(similarities, np.ones(300)), places, grades, trust)
    values = relevance.probability(np.linspace(-10, 10, 50))
    assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(values) >= -1e-9).all()
    assert relevance.weights.sum() == pytest.approx(1)
    own = relevance.of_graded([0.5, 0.5], [0.0, 1.0])
    assert own[0] <= relevance.probability([0.5])[0] + 1e-9 <= own[1] + 2e-9


@given(st.floats(0.01, 100), st.floats(-50, 50))
@settings(deadline=None, max_examples=30)
def test_the_unit_and_the_origin_of_similarities_do_not_matter(scale, shift):
    similarities, relevant = drawn(1, count=500)
    _, graded, grades = fitted(similarities, relevant)
    moved = scale * similarities + shift
    ranking = Ranking(np.sort(moved)[::-1], np.ones(500))
    other = fit_relevance(ranking, moved[graded], grades)
    same = fit_relevance(Ranking(np.sort(similarities)[::-1], np.ones(500)), similarities[graded], grades)
    assert np.allclose(other.probability(moved), same.probability(similarities), atol=1e-6)


def test_a_teacher_that_errs_leaves_less_certain_than_an_exact_one():
    similarities, relevant = drawn(3)
    exact, _, _ = fitted(similarities, relevant)
    noisy, _, _ = fitted(similarities, relevant, noise=0.3)
    best = similarities.max()
    assert noisy.of_graded([best], [1.0])[0] < exact.of_graded([best], [1.0])[0]


def test_grades_of_a_teacher_that_is_not_trusted_say_little():
    similarities, relevant = drawn(3)
    believed, _, _ = fitted(similarities, relevant, trust=1.0, count=24)
    doubted, _, _ = fitted(similarities, np.roll(relevant, 7), trust=0.0, count=24)
    middle = [float(np.median(similarities))]
    assert doubted.of_graded(middle, [1.0])[0] < believed.of_graded(middle, [1.0])[0]


def test_what_is_known_of_the_number_of_relevant_documents_counts():
    similarities, relevant = drawn(7)
    order = np.argsort(-similarities)[:10]
    ranking = Ranking(np.sort(similarities)[::-1], np.ones(len(similarities)))
    few, many = (
        fit_relevance(
            ranking,
            similarities[order],
            relevant[order].astype(float),
            log_odds=lambda numbers, usual=usual: -((np.log(np.maximum(numbers, 0.01) / usual)) ** 2),
        )
        for usual in (20, 400)
    )
    assert few.weights @ few.numbers < 60 < many.weights @ many.numbers
    assert few.probability(similarities[order[-1:]]) < many.probability(similarities[order[-1:]])


def test_documents_taken_for_irrelevant_make_relevance_rarer():
    similarities, relevant = drawn(3)
    order = np.argsort(-similarities)[:20]
    ranking = Ranking(np.sort(similarities)[::-1], np.ones(len(similarities)))
    grades, sample = relevant[order].astype(float), np.random.default_rng(0).choice(similarities, 100)
    plain = fit_relevance(ranking, similarities[order], grades)
    told = fit_relevance(ranking, similarities[order], grades, background=sample)
    assert told.weights @ told.numbers < plain.weights @ plain.numbers


def test_a_sample_stands_for_what_was_not_read():
    similarities, _ = drawn(5)
    order = np.sort(similarities)[::-1]
    ranking = Ranking.of(order[:500], np.random.default_rng(0).choice(similarities, 200), len(order))
    assert ranking.weights.sum() == pytest.approx(len(order))
    mean = ranking.weights @ ranking.similarities / len(order)
    assert mean == pytest.approx(similarities.mean(), abs=0.02)


def test_a_ranking_of_equal_similarities_is_no_error():
    relevance = fit_relevance(Ranking(np.full(5, 0.4), np.ones(5)), [0.4, 0.4], [1.0, 0.0])
    assert 0 < relevance.probability([0.4])[0] < 1


def test_a_ranking_without_documents_is_refused():
    with pytest.raises(ValueError, match="ranking holds no document"):
        fit_relevance(Ranking(np.empty(0), np.empty(0)), [], [])
