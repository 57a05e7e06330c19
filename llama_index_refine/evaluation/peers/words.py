"""Peers for documents with sparse vectors, beside dense ones: what else can be done with the same grades."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

from llama_index_refine.evaluation.peers.base import Floats
from llama_index_refine.evaluation.peers.rocchio import Feedback

CONSTANT = 2
"""The constant of Qdrant's reciprocal rank fusion."""


@dataclass(frozen=True)
class WordEvidence:
    """One query, the documents it searches, and the grades of the first of them.

    :param query: (d,) unit vector.
    :param documents: (n, d) unit vectors of all documents that the query searches.
    :param query_words: (V,) weights of the query's terms.
    :param words: (n, V) weights of the documents' terms.
    :param graded: (K,) rows of the graded documents, best first in the first search.
    :param grades: (K,) their grades in [0, 1].
    """

    query: Floats
    documents: Floats
    query_words: Floats
    words: csr_matrix
    graded: NDArray[np.intp]
    grades: Floats

    def fused(self, query: Floats, query_words: Floats) -> Floats:
        """(n,) reciprocal ranks of both searches added; a document that has none of the terms is in one only."""
        near, counted = self.documents @ query, np.asarray(self.words @ query_words)
        there = np.where(counted > 0, 1 / (CONSTANT + _ranks(counted)), 0.0)
        scores: Floats = (1 / (CONSTANT + _ranks(near)) + there).astype(np.float32)
        return scores


class WordPeer(ABC):
    """A method that ranks by the first search's vectors and the grades."""

    name: ClassVar[str]
    """What it is called in tables."""

    @abstractmethod
    def scores(self, query: WordEvidence) -> Floats:
        """Score the documents: (n,), higher is better."""


class Fused(WordPeer):
    """The first search: two rankings, fused."""

    name = "fused search"

    def scores(self, query: WordEvidence) -> Floats:
        """Leave both queries where they are."""
        return query.fused(query.query, query.query_words)


class FusedRerank(WordPeer):
    """The graded documents first, sorted by grade and then as they were; the others as they were."""

    name = "rerank"

    def scores(self, query: WordEvidence) -> Floats:
        """Fused ranks, those of graded documents raised above all others."""
        scores = query.fused(query.query, query.query_words)
        scores[query.graded] += 2 + 10 * query.grades
        return scores


class WordRocchio(Feedback, WordPeer):
    """Rocchio's feedback on the terms, and what is above zero of it."""

    name = "Rocchio, sparse"

    def moved(self, query: WordEvidence) -> Floats:
        """(V,) the terms' new weights."""
        weights: Floats = np.maximum(self.moved_by(query.query_words, query.words[query.graded], query.grades), 0)
        return weights

    def scores(self, query: WordEvidence) -> Floats:
        """Search again by the terms alone."""
        return np.asarray(query.words @ self.moved(query), dtype=np.float32)


class RelevanceModel(WordPeer):
    """RM3: the query's terms, and those of the documents by their grades, in equal parts.

    Abdul-Jaleel et al., UMass at TREC 2004: Novelty and HARD. A document's weights, made to sum to one, stand for its
    language model.
    """

    name = "RM3, sparse"

    def __init__(self, terms: int = 20, share: float = 0.5) -> None:
        """:param terms: how many of the documents' terms; :param share: the query's share, in [0, 1]."""
        self.terms = terms
        self.share = share

    def scores(self, query: WordEvidence) -> Floats:
        """Search again by the mixed terms."""
        rows = query.words[query.graded]
        totals = np.maximum(np.asarray(rows.sum(axis=1)).ravel(), 1e-12)
        model = np.asarray(rows.T @ (query.grades / totals)).ravel()
        model[np.argsort(-model, kind="stable")[self.terms :]] = 0
        mixed = self.share * _whole(query.query_words) + (1 - self.share) * _whole(model)
        return np.asarray(query.words @ mixed, dtype=np.float32)


class HybridRocchio(WordRocchio):
    """Rocchio's feedback on both halves, and their rankings fused."""

    name = "Rocchio, both"

    def scores(self, query: WordEvidence) -> Floats:
        """Search again with both moved queries."""
        near = self.moved_by(query.query, query.documents[query.graded], query.grades)
        return query.fused(near, self.moved(query))


def _whole(weights: Floats) -> Floats:
    made: Floats = weights / max(float(weights.sum()), 1e-12)
    return made


def _ranks(scores: Floats) -> Floats:
    ranks: Floats = np.empty(len(scores), dtype=np.float32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks
