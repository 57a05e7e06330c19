"""What else can be done with the same grades where documents have words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from llama_index_refine.evaluation.peers.words import (
    Fused,
    FusedRerank,
    HybridRocchio,
    RelevanceModel,
    WordEvidence,
    WordRocchio,
)

WORDS = np.array([[1, 0, 0, 0], [1, 2, 0, 0], [0, 2, 0, 0], [1, 0, 3, 0], [0, 0, 0, 1]], dtype=np.float32)


@pytest.fixture
def query() -> WordEvidence:
    """Documents 1 and 3 share the query's word; 1 is relevant, and has another word that 2 has too."""
    vectors = np.eye(5, 3, dtype=np.float32) + 0.1
    return WordEvidence(
        vectors[1],
        vectors,
        np.array([1, 0, 0, 0], dtype=np.float32),
        csr_matrix(WORDS),
        np.array([1, 3]),
        np.array([1.0, 0.0], dtype=np.float32),
    )


def test_two_rankings_are_fused_by_rank(query):
    scores = Fused().scores(query)
    assert {*np.argsort(-scores)[:2].tolist()} == {0, 1}
    # The last document has none of the words, and is in one ranking only.
    assert scores[4] < 0.5


def test_graded_documents_come_first_by_grade(query):
    order = np.argsort(-FusedRerank().scores(query), kind="stable")
    assert order[0] == 1
    assert FusedRerank().scores(query)[3] > 2


def test_words_of_relevant_documents_find_others(query):
    for peer in (WordRocchio(), RelevanceModel()):
        scores = peer.scores(query)
        assert scores[2] > 0
        assert scores[4] == 0
    assert WordRocchio().moved(query)[2] == 0


def test_both_halves_move(query):
    moved = HybridRocchio().scores(query)
    assert moved[2] >= Fused().scores(query)[2]
    assert not np.array_equal(moved, Fused().scores(query))
