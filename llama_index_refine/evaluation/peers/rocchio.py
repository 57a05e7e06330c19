"""Rocchio's relevance feedback."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llama_index_refine.evaluation.peers.base import Evidence, Floats, VectorPeer


class Rocchio(VectorPeer):
    """q + beta mean(relevant) - gamma mean(irrelevant), with the textbook's beta .75 and gamma .15.

    Introduction to Information Retrieval, section 9.1.1. A grade of at least one half is relevant.
    """

    name = "rocchio"

    def __init__(self, beta: float = 0.75, gamma: float = 0.15) -> None:
        """:param beta: weight of the relevant documents; :param gamma: and of the irrelevant, both at least 0."""
        self.beta = beta
        self.gamma = gamma

    def vectors(self, queries: Sequence[Evidence]) -> list[Floats]:
        """Move the queries towards the mean of the relevant documents and away from that of the others."""
        return [
            query.query
            + self.beta * _mean(query.graded_documents[query.grades >= 0.5])
            - self.gamma * _mean(query.graded_documents[query.grades < 0.5])
            for query in queries
        ]


def _mean(vectors: Floats) -> Floats:
    mean: Floats = vectors.mean(axis=0) if len(vectors) else np.zeros(vectors.shape[1], dtype=np.float32)
    return mean
