"""Where the grades are spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.retrieval.pipeline import split_budget


@given(budget=st.integers(2, 200), rounds=st.integers(1, 10))
def test_shares_add_up_and_none_is_too_small_to_learn_from(budget, rounds):
    shares = split_budget(budget, rounds)
    assert sum(shares) == budget
    assert len(shares) == min(rounds, budget // 2)
    assert min(shares) >= 2


@pytest.mark.parametrize(("rounds", "shares"), [(1, [20]), (2, [10, 10]), (3, [10, 5, 5])])
def test_the_first_round_gets_half(rounds, shares):
    assert split_budget(20, rounds) == shares
