"""What past queries tell of the number of relevant documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.refining.relevance import Abundance

NUMBERS = st.lists(st.floats(0, 1e7), min_size=1, max_size=20)


def known(numbers, times=1):
    abundance = Abundance.unknown()
    for _ in range(times):
        abundance = abundance.after(numbers, np.full(len(numbers), 1 / len(numbers)))
    return abundance


@given(NUMBERS)
def test_before_any_query_all_numbers_are_as_likely_as_ever(numbers):
    assert Abundance.unknown().log_odds(numbers) == pytest.approx(0, abs=1e-12)


@given(NUMBERS, st.integers(1, 30))
def test_what_was_counted_is_at_least_as_likely_as_before_and_nothing_is_impossible(numbers, times):
    odds = known(numbers, times).log_odds([*numbers, 5.0])
    assert np.isfinite(odds).all()
    # Beforehand counts as two queries, so that the likeliest gains, unless all numbers were counted alike.
    assert odds[:-1].max() >= -1e-9


def test_the_usual_number_becomes_likely_and_others_unlikely():
    odds = known([90.0, 100.0], times=30).log_odds([95.0, 3.0, 3000.0])
    assert odds[0] > 2
    assert (odds[1:] < -2).all()


def test_more_queries_tell_more():
    few, many = (known([100.0], times).log_odds([100.0, 1.0]) for times in (2, 50))
    assert many[0] > few[0] > 0
    assert many[1] < few[1] < 0


def test_it_follows_when_other_questions_are_asked():
    abundance = known([100.0], times=300)
    for _ in range(600):
        abundance = abundance.after([4.0], [1.0])
    assert abundance.log_odds([4.0])[0] > abundance.log_odds([100.0])[0]


def test_a_guessers_grades_say_nothing_of_it():
    assert Abundance.unknown().after([100.0], [0.0]).log_odds([100.0, 1.0]) == pytest.approx(0, abs=1e-12)
