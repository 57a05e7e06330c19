"""Sparse vectors as rows over the terms that one query has met."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from qdrant_client import models
from torch import Tensor

from llama_index_refine.qdrant.vectors import SparseVectors, Vectors
from llama_index_refine.qdrant.views.base import Row
from llama_index_refine.qdrant.words import Words

# The most terms of a refined query. With 64 or all of them rankings were the same to the third digit.
MOST_TERMS = 128
PERCENTILE = 0.99


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
        self._words: Words | None = None
        self._columns: dict[int, int] = {}
        self._learn(np.asarray(first.indices, dtype=np.int64))

    def meet(self, words: Words | None) -> None:
        """Take in what a sample shows of the terms' frequencies, before the first rows are made."""
        self._words = words

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

    def sample(self, query: models.SparseVector) -> NDArray[np.float64] | None:
        """(n,) scores of a sample of the collection's documents, None where there is no sample."""
        if self._words is None:
            return None
        terms = np.asarray(query.indices, dtype=np.int64)
        return self._words.scores(query, self._words.idf(terms) if self._idf else None)

    def scatter(self, found: NDArray[np.float64]) -> float:
        """Return how far the first query's scores are apart over the collection, in standard deviations.

        Most are 0, and a few are large. What matters is how far the best are from the rest: where that is more than the
        standard deviation says, it is that of the normal distribution with this 99th percentile.

        :param found: (n,) the scores of the documents found, which alone count where there is no sample.
        """
        sample = self.sample(self._first)
        if sample is None or not len(sample):
            sample = found
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
        if not self._idf or self._words is None:
            return np.ones(len(self._columns), dtype=np.float32)
        weights = self._words.idf(np.fromiter(self._columns, dtype=np.int64, count=len(self._columns)))
        return np.sqrt(weights).astype(np.float32)
