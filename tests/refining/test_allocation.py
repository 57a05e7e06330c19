"""Where the grades are spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.refining.allocation import split_budget


@given(budget=st.integers(2, 200), rounds=st.integers(1, 10), may_stop=st.booleans())
def test_shares_add_up_and_none_is_too_small_to_learn_from(budget, rounds, may_stop):
    shares = split_budget(budget, rounds, may_stop)
    assert sum(shares) == budget
    assert len(shares) == min(rounds, budget // 2)
    assert min(shares) >= 2


@pytest.mark.parametrize(("rounds", "shares"), [(1, [20]), (2, [8, 12]), (3, [5, 8, 7])])
def test_the_first_round_is_smaller_where_later_ones_may_be_saved(rounds, shares):
    assert split_budget(20, rounds, may_stop=True) == shares
