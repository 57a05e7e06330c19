"""Rocchio's relevance feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_index_refine.evaluation.peers.base import Evidence, Floats, VectorPeer


class Feedback:
    """q + beta mean(relevant) - gamma mean(irrelevant), with the textbook's beta .75 and gamma .15.

    Introduction to Information Retrieval, section 9.1.1. A grade of at least one half is relevant.
    """

    def __init__(self, beta: float = 0.75, gamma: float = 0.15) -> None:
        """:param beta: weight of the relevant documents; :param gamma: and of the irrelevant, both at least 0."""
        self.beta = beta
        self.gamma = gamma

    def moved_by(self, query: Floats, documents: Any, grades: Floats) -> Floats:
        """Move a query towards the mean of the relevant documents and away from that of the others.

        :param query: (d,)
        :param documents: (K, d) the graded documents, an array or a sparse matrix.
        :param grades: (K,) in [0, 1].
        :return: (d,)
        """
        vector: Floats = (
            query + self.beta * _mean(documents[grades >= 0.5]) - self.gamma * _mean(documents[grades < 0.5])
        )
        return vector


class Rocchio(Feedback, VectorPeer):
    """Rocchio's feedback on the query vector."""

    name = "rocchio"

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Move the queries by the graded documents."""
        return [self.moved_by(query.query, query.graded_documents, query.grades) for query in queries]


def _mean(rows: Any) -> Floats:
    mean: Floats = np.asarray(rows.sum(axis=0), dtype=np.float32).ravel() / max(rows.shape[0], 1)
    return mean
