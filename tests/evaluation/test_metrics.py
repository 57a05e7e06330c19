import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from llama_index_refine.evaluation.metrics import (
    METRICS,
    area_under_roc,
    class_gap,
    p_mrr,
    paired_bootstrap,
    score_rankings,
)

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


def test_rankings_are_scored_by_hand() -> None:
    rankings = {"a": ["x", "r1", "y", "r2"], "b": [], "c": ["r"]}
    qrels = {"a": {"r1": 1, "r2": 1, "y": 0}, "b": {"r": 1}, "c": {"r": 1, "z": 1}}
    scores = score_rankings(rankings, qrels)
    assert set(scores) == set(METRICS)
    assert scores["MAP"] == pytest.approx({"a": (1 / 2 + 2 / 4) / 2, "b": 0.0, "c": 0.5})
    assert scores["P@10"] == pytest.approx({"a": 0.2, "b": 0.0, "c": 0.1})
    assert scores["recall@100"] == pytest.approx({"a": 1.0, "b": 0.0, "c": 0.5})
    ideal = 1 + 1 / np.log2(3)
    assert scores["nDCG@10"]["a"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / ideal)


def test_documents_below_the_cutoff_do_not_count() -> None:
    ranking = [f"x{i}" for i in range(1000)]
    assert score_rankings({"q": [*ranking, "r"]}, {"q": {"r": 1}})["MAP"]["q"] == 0
    assert score_rankings({"q": [*ranking[1:], "r"]}, {"q": {"r": 1}})["MAP"]["q"] == pytest.approx(0.001)


@given(SCORES, SCORES)
def test_area_under_roc_is_sklearns(relevant: list[float], irrelevant: list[float]) -> None:
    ours = area_under_roc(np.array(relevant), np.array(irrelevant))
    labels = [1] * len(relevant) + [0] * len(irrelevant)
    assert ours == pytest.approx(roc_auc_score(labels, relevant + irrelevant))


def test_an_empty_class_has_no_separation() -> None:
    some, none = np.array([1.0, 2.0, 3.0]), np.array([])
    assert np.isnan(area_under_roc(some, none))
    assert np.isnan(class_gap(none, some))
    assert np.isnan(class_gap(np.ones(3), np.ones(3)))


def test_gap_is_in_pooled_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    relevant, irrelevant = rng.normal(1.0, 0.5, 20_000), rng.normal(0.0, 0.5, 50_000)
    assert class_gap(relevant, irrelevant) == pytest.approx(2.0, abs=0.03)
    assert class_gap(7 * relevant - 3, 7 * irrelevant - 3) == pytest.approx(class_gap(relevant, irrelevant))


def test_p_mrr_by_hand() -> None:
    """The document that the change made irrelevant falls from rank 1 to 4, rises from 4 to 1, or stays."""
    up, down = ["a", "x", "y", "z"], ["x", "y", "z", "a"]
    rankings = {"1-og": up, "1-changed": down, "2-og": down, "2-changed": up, "3-og": up, "3-changed": up, "4-og": up}
    changed = {"1": ["a"], "2": ["a"], "3": ["a"], "4": ["a"], "5": ["a"]}
    assert p_mrr(rankings, changed) == {"1": 0.75, "2": -0.75, "3": 0.0}


def test_p_mrr_of_a_document_that_is_no_longer_found() -> None:
    assert p_mrr({"1-og": ["a", "x"], "1-changed": ["x"]}, {"1": ["a"]}) == {"1": 0.5}


def test_bootstrap_interval_covers_and_repeats() -> None:
    rng = np.random.default_rng(1)
    theirs = rng.uniform(size=80)
    ours = theirs + 0.1 + 0.05 * rng.normal(size=80)
    found = paired_bootstrap(ours, theirs)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(0.1, abs=0.02)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.05 / np.sqrt(80), rel=0.25)
    assert found == paired_bootstrap(ours, theirs)


def test_bootstrap_leaves_undefined_pairs_out() -> None:
    found = paired_bootstrap([1.0, float("nan"), 3.0], [0.0, 1.0, float("nan")])
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    assert np.isnan(paired_bootstrap([float("nan")], [1.0]).mean)


def test_bootstrap_wants_the_same_queries() -> None:
    with pytest.raises(ValueError, match="same queries"):
        paired_bootstrap([1.0], [1.0, 2.0])
