"""Bounds on how many of a set are relevant hold as often as they say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, hypergeom

from llama_index_refine.selecting.bounds import least_hits, most_hits


@pytest.mark.parametrize(("size", "drawn"), [(1, 1), (12, 5), (30, 29), (60, 20)])
@pytest.mark.parametrize("risk", [0.02, 0.1, 0.5])
def test_the_bounds_are_wrong_no_more_often_than_the_risk(size, drawn, risk):
    for relevant in range(size + 1):
        chances = {hits: hypergeom.pmf(hits, size, relevant, drawn) for hits in range(drawn + 1)}
        possible = {hits: chance for hits, chance in chances.items() if chance > 0}
        above = sum(chance for hits, chance in possible.items() if most_hits(size, drawn, hits, risk) < relevant)
        below = sum(chance for hits, chance in possible.items() if least_hits(size, drawn, hits, risk) > relevant)
        assert max(above, below) <= risk + 1e-9


@pytest.mark.parametrize(("drawn", "hits"), [(22, 22), (80, 74), (300, 0)])
def test_a_large_set_has_the_bound_of_clopper_and_pearson(drawn, hits):
    size = 10**7
    limit = beta.ppf(0.1, hits, drawn - hits + 1) if hits else 0.0
    assert least_hits(size, drawn, hits, 0.1) / size == pytest.approx(limit, abs=1e-4)


def test_no_hit_in_300_of_a_million_still_allows_thousands():
    assert 7000 < most_hits(10**6, 300, 0, 0.1) < 8000


@given(st.integers(0, 80), st.data())
@settings(deadline=None, max_examples=60)
def test_the_bounds_enclose_what_was_seen_and_what_can_be(size, data):
    drawn = data.draw(st.integers(0, size))
    hits = data.draw(st.integers(0, drawn))
    low, high = least_hits(size, drawn, hits, 0.1), most_hits(size, drawn, hits, 0.1)
    assert hits <= low <= high <= size - drawn + hits
    assert drawn < size or low == high == hits
