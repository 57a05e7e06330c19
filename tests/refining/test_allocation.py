"""Where the grades are spent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.refining.allocation import next_to_grade, split_budget


@given(budget=st.integers(2, 200), rounds=st.integers(1, 10), may_stop=st.booleans())
def test_shares_add_up_and_none_is_too_small_to_learn_from(budget, rounds, may_stop):
    shares = split_budget(budget, rounds, may_stop)
    assert sum(shares) == budget
    assert len(shares) == min(rounds, budget // 2)
    assert min(shares) >= 2


@pytest.mark.parametrize(("rounds", "shares"), [(1, [20]), (2, [8, 12]), (3, [5, 8, 7])])
def test_the_first_round_is_smaller_where_later_ones_may_be_saved(rounds, shares):
    assert split_budget(20, rounds, may_stop=True) == shares


def test_stays_at_the_top_where_little_is_relevant():
    known, grades = torch.tensor([0.9, 0.2, 0.1, 0.1]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    candidates = torch.linspace(0.5, 0.0, 100)
    assert next_to_grade(known, grades, candidates, 5) == [0, 1, 2, 3, 4]


def test_goes_deep_where_what_was_graded_is_all_relevant():
    known, grades = torch.tensor([0.9, 0.9, 0.9, 0.1]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    candidates = torch.linspace(0.85, 0.0, 100)
    places = next_to_grade(known, grades, candidates, 5)
    border = int((candidates > 0.5).sum())
    assert places[0] == 0
    assert places[-1] == border


@given(seed=st.integers(0, 1000), known=st.integers(2, 20), available=st.integers(0, 60), count=st.integers(1, 20))
def test_chooses_different_places_that_exist(seed, known, available, count):
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.rand(available, generator=generator).sort(descending=True).values
    places = next_to_grade(
        torch.rand(known, generator=generator), torch.rand(known, generator=generator), candidates, count
    )
    assert len(places) == len(set(places)) == min(count, available)
    assert all(0 <= place < available for place in places)


@pytest.mark.parametrize("grade", [0.0, 1.0])
def test_equal_grades_do_not_break_the_border(grade):
    places = next_to_grade(torch.tensor([0.5, 0.4]), torch.full((2,), grade), torch.tensor([0.3, 0.2, 0.1]), 2)
    assert len(set(places)) == 2
