"""Sparse vectors of weighed terms: searched alone, and as rows over the terms that one query has met."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from qdrant_client import models
from torch import Tensor

from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.vectors import Space, SparseVectors
from llama_index_refine.qdrant.views.dense import Query, Row, View

if TYPE_CHECKING:
    from llama_index_refine.qdrant.background import Background

Array = NDArray[np.float64]

# A few documents do not show how rare words scatter. Ids, terms and weights of so many are small beside dense vectors.
SAMPLE = 400
# The most terms of a refined query. With 64 or all of them rankings were the same to the third digit.
MOST_TERMS = 128
PERCENTILE = 0.99


@dataclass(frozen=True, eq=False)
class SparseQuery(Query):
    """The points with the most of some terms; those that have none of them are not found.

    :param words: the terms and their weights.
    :param threshold: points with a worse score are left out.
    """

    words: models.SparseVector
    threshold: float | None = None
    finds_all = False
    dense = None
    telling = None

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write it. See `Query`."""
        return {"query": self.words, "using": space.sparse, **restricted}

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        return {space.sparse or "": self.words}

    def view(self, space: Space) -> SparseView:
        """See `Query`."""
        return SparseView(self, space)


class SparseView(View):
    """Rows are weights of terms."""

    _first: SparseQuery
    # Scores of a few terms are not those of many.
    lasts = False

    def __init__(self, first: SparseQuery, space: Space) -> None:
        super().__init__(first, space)
        self.metric = self.distance = "dot"
        self._terms = Terms(first.words, space.idf)

    def meet(self, shown: Vectors, background: Background | None) -> None:
        """See `View`."""
        super().meet(shown, background)
        self._terms.words = background.words if background else None
        (rows,) = self.rows(shown)
        # As a sample of the collection has it: most of a few documents have none of the query's terms.
        self.scatter = self._terms.scatter((rows @ torch.as_tensor(self.row)).double().numpy())

    @property
    def row(self) -> Row:
        """(D,) the first query's weights."""
        return self._terms.row

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return the weights."""
        return self._terms.rows(*some)

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query for some weights; the first one where they have not moved."""
        if unmoved(row, self.row):
            return self._first
        return SparseQuery(self._terms.query(row), self.threshold(row, self._first.threshold))

    def _similarities(self, row: Row) -> Tensor:
        """Score the larger sample of the collection, where there is one."""
        words = self._first.words if unmoved(row, self.row) else self._terms.query(row)
        if self._terms.words is None:
            return torch.from_numpy(Words(self._sample.sparse or SparseVectors.of([]), 0).scores(words))
        return torch.from_numpy(self._terms.sample(words))


@dataclass(frozen=True)
class Words:
    """Sparse vectors of documents drawn from the whole collection, whatever the filter, as Qdrant counts terms.

    :param vectors: n of them.
    :param population: how many documents the collection has.
    """

    vectors: SparseVectors
    population: int

    @cached_property
    def _frequencies(self) -> tuple[NDArray[np.int64], Array]:
        terms, counts = np.unique(self.vectors.terms, return_counts=True)
        return terms, counts.astype(np.float64)

    def idf(self, terms: NDArray[np.int64]) -> Array:
        """Estimate by what Qdrant's IDF modifier multiplies a query's weights: ln((N - n + 0.5) / (n + 0.5) + 1).

        :param terms: (t,)
        :return: (t,) above 0.
        """
        known, counts = self._frequencies
        at = np.searchsorted(known, terms).clip(0, max(len(known) - 1, 0))
        seen = np.where(known[at] == terms, counts[at], 0.0) if len(known) else np.zeros(len(terms))
        total = max(self.population, len(self.vectors), 1)
        # A term that the sample lacks is taken for one that is in half a document more than it has.
        holding = (seen + 0.5) / (len(self.vectors) + 1) * total
        weights: Array = np.log1p(np.maximum(total - holding + 0.5, 0.5) / (holding + 0.5))
        return weights

    def scores(self, query: models.SparseVector, weights: Array | None = None) -> Array:
        """Score the sample's documents.

        :param query: the query.
        :param weights: (t,) by what each of its terms' values is multiplied, None for 1.
        :return: (n,)
        """
        if not query.indices or not len(self.vectors):
            return np.zeros(len(self.vectors))
        terms = np.asarray(query.indices, dtype=np.int64)
        values = np.asarray(query.values, dtype=np.float64) * (1.0 if weights is None else weights)
        order = np.argsort(terms)
        at = np.searchsorted(terms, self.vectors.terms, sorter=order).clip(0, len(terms) - 1)
        there = terms[order[at]] == self.vectors.terms
        products = np.where(there, values[order[at]], 0.0) * self.vectors.values
        scores: Array = np.bincount(self.vectors.rows, products, minlength=len(self.vectors)).astype(np.float64)
        return scores


class Terms:
    """The terms of a query, of its graded documents and of its background, a column each. They only become more.

    Where Qdrant multiplies a query's weights by the terms' inverse document frequencies, a column is a term's value
    times the root of that, in documents and query alike: so inner products of rows are scores, and rare terms count for
    more in how alike two documents are.

    :param first: the first query.
    :param idf: whether Qdrant multiplies.
    """

    def __init__(self, first: models.SparseVector, idf: bool) -> None:
        self._first = first
        self._idf = idf
        # A sample of the collection's documents, which is there before the first rows are made; None for none.
        self.words: Words | None = None
        self._columns: dict[int, int] = {}
        self._learn(np.asarray(first.indices, dtype=np.int64))

    @property
    def row(self) -> Row:
        """(D,) the first query."""
        row = np.zeros(len(self._columns), dtype=np.float32)
        row[[self._columns[term] for term in self._first.indices]] = self._first.values
        return row * self._roots()

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return (n, D) rows for each of some vectors, of which those of no points have no sparse ones."""
        sparse = [vectors.sparse or SparseVectors.of([]) for vectors in some]
        for vectors in sparse:
            self._learn(vectors.terms)
        roots = self._roots()
        made = []
        for vectors in sparse:
            rows = np.zeros((len(vectors), len(self._columns)), dtype=np.float32)
            rows[vectors.rows, [self._columns[term] for term in vectors.terms.tolist()]] = vectors.values
            made.append(torch.from_numpy(rows * roots))
        return made

    def query(self, row: Row) -> models.SparseVector:
        """Return the query for a row: its largest weights, as far as they are above zero.

        What speaks against a document is left out: rankings are as good without it, and Qdrant need not look at every
        document that has such a term.
        """
        weights = np.asarray(row, dtype=np.float64) / self._roots()[: len(row)]
        best = np.argsort(-weights, kind="stable")[:MOST_TERMS]
        best = best[weights[best] > 0]
        terms = np.fromiter(self._columns, dtype=np.int64)[best]
        return models.SparseVector(indices=terms.tolist(), values=weights[best].tolist())

    def sample(self, query: models.SparseVector) -> Array:
        """(n,) scores of the sample, of none where there is no sample."""
        if self.words is None:
            return np.empty(0)
        terms = np.asarray(query.indices, dtype=np.int64)
        return self.words.scores(query, self.words.idf(terms) if self._idf else None)

    def scatter(self, found: NDArray[np.float64]) -> float:
        """Return how far the first query's scores are apart over the collection, in standard deviations.

        Most are 0, and a few are large. What matters is how far the best are from the rest: where that is more than the
        standard deviation says, it is that of the normal distribution with this 99th percentile.

        :param found: (n,) the scores of the documents found, which alone count where there is no sample.
        """
        sample = self.sample(self._first)
        sample = sample if len(sample) else found
        if not len(sample):
            return 1.0
        tail = float(np.quantile(sample, PERCENTILE) - sample.mean()) / NormalDist().inv_cdf(PERCENTILE)
        # Words so rare that no document drawn has them: half a document more than there are.
        least = float(found.max(initial=0.0)) * (0.5 / (len(sample) + 1)) ** 0.5
        return max(float(sample.std()), tail, least) or 1.0

    def _learn(self, terms: NDArray[np.int64]) -> None:
        for term in np.unique(terms).tolist():
            self._columns.setdefault(term, len(self._columns))

    def _roots(self) -> Row:
        if not self._idf or self.words is None:
            return np.ones(len(self._columns), dtype=np.float32)
        weights = self.words.idf(np.fromiter(self._columns, dtype=np.int64, count=len(self._columns)))
        return np.sqrt(weights).astype(np.float32)


def unmoved(row: Row, first: Row) -> bool:
    """Say whether a row is that of the first query, up to rounding."""
    wide = np.zeros(len(first), dtype=np.float32)
    wide[: len(row)] = row
    return bool(np.linalg.norm(wide - first) <= 1e-5 * np.linalg.norm(first))
