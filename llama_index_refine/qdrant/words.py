"""A sample of a collection's sparse vectors: how often its terms occur, and how scores scatter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from llama_index_refine.qdrant.vectors import SparseVectors

Array = NDArray[np.float64]

# A few documents do not show how rare words scatter. Ids, terms and weights of so many are small beside dense vectors.
SAMPLE = 400


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
