"""Where to cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.refining.relevance import Errors, Ranking, Relevance
from llama_index_refine.selecting.cut import PLACES, Outlook, outlook

EMPTY = Ranking(np.empty(0), np.empty(0))


def steep(midpoint, weights=(1.0,)):
    midpoints = np.atleast_1d(np.asarray(midpoint, dtype=float))
    shares = np.asarray(weights)
    slopes, numbers, pairs = np.full(len(midpoints), 50.0), np.ones(len(midpoints)), np.tile(shares, (7, 1)) / 7
    return Relevance(0.0, 1.0, midpoints, slopes, shares, pairs, numbers, Errors.usual(1.0))


def test_the_best_cut_is_where_relevance_ends():
    similarities = np.linspace(3, -3, 61)
    view = outlook(steep(0.95), similarities, np.full(61, np.nan), EMPTY)
    assert view.best() == (similarities > 0.95).sum()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(deadline=None, max_examples=80)
def test_the_best_cut_is_the_best_of_all(probabilities):
    certain = np.sort(probabilities)[::-1]
    view = outlook(steep(0.0), np.full(len(certain), np.nan), certain, EMPTY)
    hits, total = np.cumsum(certain), max(certain.sum(), 1e-12)
    every = np.r_[0.0, 2 * hits / (np.arange(1, len(certain) + 1) + total)]
    assert every[view.best()] == pytest.approx(every.max(), abs=1e-9)


def test_targets_are_met_by_the_largest_and_the_smallest_selection():
    certain = np.array([1.0, 1.0, 0.8, 0.6, 0.1, 0.1])
    view = outlook(steep(0.0), np.full(6, np.nan), certain, EMPTY)
    assert view.most_precise(0.85) == 4
    assert view.most_precise(0.99) == 2
    assert view.least_complete(0.9) == 4
    assert view.least_complete(0.3) == 2


def test_documents_further_down_count_for_recall():
    rest = Ranking(np.array([2.0]), np.array([10.0]))
    view = outlook(steep(0.0), np.array([3.0, 2.5]), np.full(2, np.nan), rest)
    assert view.intervals(2, 0.9)[1].estimate == pytest.approx(2 / 12, abs=1e-6)
    assert view.intervals(2, 0.9)[2].estimate == pytest.approx(12, abs=1e-4)


def test_intervals_show_what_the_curves_do_not_agree_on():
    similarities = np.linspace(3, -3, 61)
    sure = outlook(steep(1.05), similarities, np.full(61, np.nan), EMPTY)
    unsure = outlook(steep([0.05, 2.05], (0.5, 0.5)), similarities, np.full(61, np.nan), EMPTY)
    assert np.ptp(sure.intervals(20, 0.9)[0]) < 1e-6
    low, estimate, high = unsure.intervals(20, 0.9)[0]
    assert low < 0.6 < estimate < high == 1
    assert sure.doubt().sum() == 0
    doubted = np.flatnonzero(unsure.doubt())
    assert doubted.min() == 10
    assert doubted.max() == 29


def test_long_rankings_are_cut_at_fewer_places_whose_ends_are_the_ranking():
    count = 5 * PLACES
    view = outlook(steep(2.0), np.linspace(3, -3, count), np.full(count, np.nan), EMPTY)
    assert len(view.places) <= PLACES + 2
    assert view.places[0] == 0
    assert view.places[-1] == count
    assert view.best() == pytest.approx(count / 6, rel=0.01)


def test_nothing_relevant_is_found_whole_by_selecting_nothing():
    view = Outlook(np.arange(3), np.zeros((1, 3)), np.zeros(1), np.ones(1))
    assert view.recall().tolist() == [[1, 1, 1]]
    assert view.precision().tolist() == [[1, 0, 0]]
