"""Peers for matrices, held to formulas written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llama_index_refine.evaluation.peers.matrices import MatrixEvidence, MatrixGradient, MatrixRerank, MaxSim
from llama_index_refine.refining.published import PublishedRefiner

D, N, K = 12, 60, 10


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_evidence(tokens: int = 3, seed: int = 0) -> tuple[MatrixEvidence, np.ndarray]:
    """A query, and documents of which some have a vector near a direction that the grades know."""
    rng = np.random.default_rng(seed)
    topic, query = unit(rng.normal(size=D)), unit(rng.normal(size=(tokens, D)))
    relevant = rng.random(N) < 0.3
    documents = []
    for about in relevant:
        rows = rng.normal(size=(rng.integers(1, 6), D))
        rows[0] = query[0] + about * topic + 0.2 * rng.normal(size=D)
        documents.append(unit(rows))
    first = np.array([(query @ document.T).max(1).sum() for document in documents])
    graded = np.argsort(-first, kind="stable")[:K]
    return MatrixEvidence(query, documents, graded, relevant[graded].astype(np.float32)), relevant


def test_the_first_search_is_maxsim_written_out():
    evidence, _ = make_evidence()
    first = [(evidence.query @ document.T).max(1).sum() for document in evidence.documents]
    np.testing.assert_allclose(MaxSim().scores(evidence), first, atol=1e-5)


def test_reranking_moves_graded_documents_only():
    evidence, _ = make_evidence()
    before, after = MaxSim().scores(evidence), MatrixRerank().scores(evidence)
    order = np.argsort(-after)
    assert set(order[:K]) == set(evidence.graded)
    grades = [evidence.grades[list(evidence.graded).index(row)] for row in order[:K]]
    assert grades == sorted(grades, reverse=True)
    rest = np.setdiff1d(np.arange(N), evidence.graded)
    np.testing.assert_array_equal(before[rest], after[rest])


@pytest.mark.parametrize("rate", [1e-4, 1e-3])
def test_the_gradient_of_one_token_is_the_published_procedure(rate):
    evidence, _ = make_evidence(tokens=1)
    single = replace(evidence, documents=[document[:1] for document in evidence.documents])
    graded = np.stack([single.documents[row][0] for row in single.graded])
    published = PublishedRefiner(rate=rate).refine(single.query[0], graded, single.grades)
    np.testing.assert_allclose(MatrixGradient(rate=rate).moved(single)[0], published.vector, atol=1e-5)


def test_the_gradient_gains_from_good_grades():
    evidence, relevant = make_evidence()
    before, after = MaxSim().scores(evidence), MatrixGradient().scores(evidence)
    gap = [scores[relevant].mean() - scores[~relevant].mean() for scores in (before, after)]
    assert gap[1] > gap[0]


def test_without_grades_the_query_stays():
    evidence, _ = make_evidence()
    none = replace(evidence, graded=np.array([], dtype=np.intp), grades=np.array([], dtype=np.float32))
    np.testing.assert_array_equal(MatrixGradient().scores(none), MaxSim().scores(none))
