"""How near a document is to a query, for each distance, and how Qdrant writes it as a score."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "dot", "euclid"]
METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclid")


def similarity(query: Tensor, documents: Tensor, metric: Metric) -> Tensor:
    """Return a similarity that is linear in the query but for a term that all documents share; larger is nearer.

    :param query: (d,) vector in the collection's space.
    :param documents: (K, d) vectors.
    :param metric: the collection's distance.
    :return: (K,) cosine, inner product, or minus half the squared distance.
    """
    if metric == "euclid":
        return -(documents - query).square().sum(-1) / 2
    if metric == "cosine":
        query, documents = _directions(query), _directions(documents)
    return documents @ query


def _directions(vectors: Tensor) -> Tensor:
    # torch's own normalize, without what it calls on the way.
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / lengths.clamp_min(1e-12)


def similarity_of_score(scores: Tensor, metric: Metric) -> Tensor:
    """Turn Qdrant's scores, which are distances for euclid, into similarities."""
    return -scores.square() / 2 if metric == "euclid" else scores


def score_of_similarity(similarities: Tensor, metric: Metric) -> Tensor:
    """Turn similarities into Qdrant's scores, within their range."""
    if metric == "euclid":
        return (-2 * similarities).clamp_min(0).sqrt()
    return similarities.clamp(-1, 1) if metric == "cosine" else similarities


def passes(scores: Tensor, threshold: float | None, metric: Metric) -> Tensor:
    """Say which of Qdrant's scores pass a score threshold, as Qdrant does: they are better than it, not equal to it.

    :param scores: (n,) Qdrant's scores.
    :param threshold: the threshold, None for none.
    :param metric: the collection's distance.
    :return: (n,) of bool.
    """
    if threshold is None:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores < threshold if metric == "euclid" else scores > threshold
