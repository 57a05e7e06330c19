"""Qdrant's own queries that take feedback, computed from the vectors in hand.

Both are what `query_points` with a `RelevanceFeedbackQuery` or a `RecommendQuery` returns for unit vectors, whose
similarities are linear in the query: sums of similarities to examples are one similarity to a sum of examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_index_refine.evaluation.peers.base import Evidence, Floats, Peer, VectorPeer

_FOLDS = 5


class QdrantFeedback(VectorPeer):
    """The relevance feedback query with the naive strategy.

    Every pair of graded documents with a difference in grade c adds c^b times the difference of its similarities,
    weighted by c', to a times the similarity to the query. The three weights are fitted as qdrant-relevance-feedback
    fits them: Adam on a pairwise ranking loss, on one pair of the first few documents and the grades of those after
    them. They are fitted on other queries of the data set, in five parts, so that no query has a part in its own.
    """

    name = "qdrant feedback"

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Fit the weights on other queries and turn each feedback query into the vector that ranks alike."""
        found: list[Floats] = [query.query for query in queries]
        for fold in range(_FOLDS):
            weights = self.fit([query for row, query in enumerate(queries) if row % _FOLDS != fold])
            for row in range(fold, len(queries), _FOLDS):
                found[row] = feedback_vector(queries[row], weights)
        return found

    def fit(self, queries: Sequence[Evidence]) -> Weights:
        """Fit the weights on graded queries."""
        return fit_weights(queries)


class QdrantFeedbackTuned(QdrantFeedback):
    """The relevance feedback query with the weights that have the best MAP on other queries.

    Kinder to it than the fit of its package, which knows grades only: here the human labels of the other queries pick,
    and the graded documents are all used in the fit as they are used in the query.
    """

    name = "qdrant feedback tuned"

    def fit(self, queries: Sequence[Evidence]) -> Weights:
        """Pick the weights by the labels of these queries.

        :raises ValueError: a query without labels.
        """
        precision = np.zeros(len(_GRID))
        for query in queries:
            if query.relevant is None:
                raise ValueError(f"{self.name} picks its weights by labels, and a query has none")
            vectors = np.stack([feedback_vector(query, weights) for weights in _GRID])
            precision += _average_precision(query.documents @ vectors.T, query.relevant)
        return _GRID[int(precision.argmax())]


class QdrantRecommend(Peer):
    """The recommendation query: the query and the relevant documents as positive, the others as negative examples.

    A grade of at least one half is relevant. Of its strategies, that with the better MAP in hindsight.
    """

    name = "qdrant recommend"

    def candidates(self) -> Sequence[Peer]:
        """Average vector, best score and sum of scores."""
        return [_AverageVector(), _BestScore(), _SumScores()]

    def scores(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Not ranked by itself: one of its candidates is picked."""
        raise TypeError("QdrantRecommend is a choice among its candidates()")


class _AverageVector(VectorPeer):
    """Searches with twice the mean of the positive less the mean of the negative examples."""

    name = QdrantRecommend.name

    @property
    def settings(self) -> str:
        return "average_vector"

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        found = []
        for query in queries:
            positive, negative = _examples(query)
            mean: Floats = positive.mean(axis=0)
            found.append(2 * mean - negative.mean(axis=0) if len(negative) else mean)
        return found


class _BestScore(Peer):
    """The similarity to the nearest positive example, or minus that to the nearest negative where it is nearer."""

    name = QdrantRecommend.name

    @property
    def settings(self) -> str:
        return "best_score"

    def scores(self, queries: Sequence[Evidence]) -> list[Floats]:
        found = []
        for query in queries:
            positive, negative = _examples(query)
            near = (query.documents @ positive.T).max(axis=1)
            far = (query.documents @ negative.T).max(axis=1) if len(negative) else np.full_like(near, -np.inf)
            found.append(np.where(near > far, _squash(near), -_squash(np.maximum(far, -1))).astype(np.float32))
        return found


class _SumScores(VectorPeer):
    """Adds the similarities to the positive and takes away those to the negative examples."""

    name = QdrantRecommend.name

    @property
    def settings(self) -> str:
        return "sum_scores"

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        found = []
        for query in queries:
            positive, negative = _examples(query)
            found.append(positive.sum(axis=0) - negative.sum(axis=0))
        return found


def _examples(query: Evidence) -> tuple[Floats, Floats]:
    relevant = query.grades >= 0.5
    return np.vstack([query.query[None], query.graded_documents[relevant]]), query.graded_documents[~relevant]


def _squash(scores: Floats) -> Floats:
    """Qdrant's fast sigmoid, scaled to [0, 1]."""
    squashed: Floats = 0.5 * (scores / (1 + np.abs(scores)) + 1)
    return squashed


@dataclass(frozen=True)
class Weights:
    """The three weights of the naive strategy: of the similarity, the exponent of confidence, and of the pairs."""

    a: float = 1.0
    b: float = 1.0
    c: float = 1.0


_GRID = [Weights(1.0, 1.0, 0.0), *(Weights(1.0, b, c) for b in (0.0, 1.0, 2.0) for c in (0.003, 0.01, 0.03, 0.1, 0.3))]


def _average_precision(scores: Floats, relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, m) scores of m methods to (m,) average precisions."""
    ordered = np.sort(scores, axis=0)
    found = np.zeros(scores.shape[1])
    for method in range(scores.shape[1]):
        ranks = len(scores) - np.searchsorted(ordered[:, method], np.sort(scores[relevant, method])[::-1], "right") + 1
        found[method] = (np.arange(1, len(ranks) + 1) / ranks).mean() if len(ranks) else 0.0
    return found


def feedback_vector(query: Evidence, weights: Weights) -> Floats:
    """Turn a relevance feedback query into the vector whose similarities rank alike.

    :param query: the query and its grades.
    :return: (d,) a q + c sum over pairs (i, j) with g_i > g_j of (g_i - g_j)^b (d_i - d_j); q where there is no pair.
    """
    confidence = np.maximum(query.grades[:, None] - query.grades[None, :], 0)
    if not confidence.any():
        return query.query
    strength = np.where(confidence > 0, np.power(confidence, weights.b, where=confidence > 0, out=confidence.copy()), 0)
    share = strength.sum(axis=1) - strength.sum(axis=0)
    moved: Floats = (weights.a * query.query + weights.c * (share @ query.graded_documents)).astype(np.float32)
    return moved


def fit_weights(queries: Sequence[Evidence], context: int = 5, seed: int = 0) -> Weights:
    """Fit the weights on graded queries, as the package qdrant-relevance-feedback does.

    The pair with the largest difference in grade among the first `context` documents makes the signal, the documents
    after them the examples; half of the queries train and the other half stop the training early.

    :param queries: training queries.
    :param seed: of the split.
    :return: the weights; all 1, as Qdrant's examples have them, where there is nothing to learn from.
    """
    examples = [example for query in queries if (example := _example(query, context)) is not None]
    if len(examples) < 2:
        return Weights()
    order = np.random.default_rng(seed).permutation(len(examples))
    half = len(examples) // 2
    training, held_out = [examples[i] for i in order[:half]], [examples[i] for i in order[half:]]
    parameters = _train(_Batch.of(training), _Batch.of(held_out))
    a, b, c = (float(value) for value in parameters)
    return Weights(a, max(b, 0.0), c)


@dataclass(frozen=True)
class _Example:
    """One training query: (n,) similarity to the query, (n,) to the pair, its confidence, (n,) grades."""

    similarity: Floats
    delta: Floats
    confidence: float
    grades: Floats


def _example(query: Evidence, context: int) -> _Example | None:
    grades = query.grades
    if len(grades) <= context + 1:
        return None
    best, worst = int(grades[:context].argmax()), int(grades[:context].argmin())
    confidence = float(grades[best] - grades[worst])
    if confidence <= 0:
        return None
    documents = query.graded_documents
    after = documents[context:]
    return _Example(after @ query.query, after @ (documents[best] - documents[worst]), confidence, grades[context:])


@dataclass(frozen=True)
class _Batch:
    """(B, n) examples and the (B, n, n) pairs of them whose second has the higher grade."""

    similarity: Tensor
    delta: Tensor
    confidence: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, examples: Sequence[_Example]) -> _Batch:
        """Stack examples, filling short ones with documents that form no pair."""
        most = max(len(example.grades) for example in examples)

        def pad(values: Floats, fill: float = 0.0) -> Floats:
            padded: Floats = np.pad(values, (0, most - len(values)), constant_values=fill)
            return padded

        grades = torch.tensor(np.stack([pad(example.grades, np.nan) for example in examples]))
        return cls(
            torch.tensor(np.stack([pad(example.similarity) for example in examples])),
            torch.tensor(np.stack([pad(example.delta) for example in examples])),
            torch.tensor([[example.confidence] for example in examples]),
            grades[:, None, :] > grades[:, :, None],
        )

    def loss(self, parameters: Tensor, margin: float = 0.01) -> Tensor:
        """Hinge loss over all pairs in the wrong order."""
        a, b, c = parameters
        scores = a * self.similarity + torch.pow(self.confidence, b) * self.delta * c
        short = (scores[:, :, None] - scores[:, None, :] + margin).clamp_min(0)
        return torch.where(self.pairs, short, 0.0).sum()


def _train(training: _Batch, held_out: _Batch, rate: float = 0.005, epochs: int = 1000, patience: int = 200) -> Tensor:
    parameters = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([parameters], lr=rate)
    best, lowest, waited = parameters.detach().clone(), float("inf"), 0
    for _ in range(epochs):
        adam.zero_grad()
        training.loss(parameters).backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            loss = float(held_out.loss(parameters))
        waited = 0 if loss + 1e-6 < lowest else waited + 1
        if waited == 0:
            best, lowest = parameters.detach().clone(), loss
        if waited >= patience:
            break
    return best
