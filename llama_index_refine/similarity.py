"""How near a document is to a query, for each distance, and how Qdrant writes it as a score.

Matrices of token vectors are compared by late interaction (ColBERT, arXiv 2004.12832). MaxSim adds up, over the query's
tokens, the similarity of each to its best match in the document: sum_t max_j q_t.d_j. With the matches held fixed it is
an inner product of two stacked rows of T * d numbers: the query's tokens, and the document's vector that each of them
matches. For Euclid, Qdrant adds up squared distances, which is the squared distance of the same two rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

Metric = Literal["cosine", "dot", "euclid"]
METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclid")
# A vector that is shorter has no direction.
SHORTEST = 1e-12


def similarity(query: Tensor, documents: Tensor, metric: Metric) -> Tensor:
    """Return a similarity that is linear in the query but for a term that all documents share; larger is nearer.

    :param query: (d,) vector in the collection's space.
    :param documents: (K, d) vectors.
    :param metric: the collection's distance.
    :return: (K,) cosine, inner product, or minus half the squared distance.
    """
    if metric == "euclid":
        return -(documents - query).square().sum(-1) / 2
    inner: Tensor = documents @ query
    if metric == "dot":
        return inner
    # Dividing numbers is quicker than making vectors of length 1.
    inner /= torch.linalg.vector_norm(documents, dim=-1).clamp_min(SHORTEST)
    inner /= torch.linalg.vector_norm(query).clamp_min(SHORTEST)
    return inner


def similarity_of_score(scores: Tensor, metric: Metric) -> Tensor:
    """Turn Qdrant's scores, which are distances for euclid, into similarities."""
    return -scores.square() / 2 if metric == "euclid" else scores


def score_of_similarity(similarities: Tensor, metric: Metric) -> Tensor:
    """Turn similarities into Qdrant's scores, within their range."""
    if metric == "euclid":
        return (-2 * similarities).clamp_min(0).sqrt()
    return similarities.clamp(-1, 1) if metric == "cosine" else similarities


def passes(scores: Tensor, threshold: float, metric: Metric) -> Tensor:
    """Say which of Qdrant's scores pass a score threshold, as Qdrant does: they are better than it, not equal to it.

    :param scores: (n,) Qdrant's scores.
    :param threshold: the threshold.
    :param metric: the collection's distance.
    :return: (n,) of bool.
    """
    return scores < threshold if metric == "euclid" else scores > threshold


def row_metric(metric: Metric) -> Metric:
    """Return the distance that stacked rows are compared by: of unit vectors the cosines are inner products."""
    return "euclid" if metric == "euclid" else "dot"


def query_row(query: Tensor, metric: Metric) -> Tensor:
    """Stack a query's tokens.

    :param query: (T, d), a vector for each token.
    :param metric: the collection's distance.
    :return: (T * d,) of unit vectors for cosine.
    """
    return (normalize(query, dim=-1) if metric == "cosine" else query).flatten()


def document_rows(query: Tensor, documents: Sequence[Tensor], metric: Metric) -> Tensor:
    """Stack, for each document, the vectors that the query's tokens match best.

    :param query: (T, d). A zero vector, as padding is, matches nothing, unless the distance is Euclid's.
    :param documents: K matrices, (n_i, d) each, n_i at least 1.
    :param metric: the collection's distance.
    :return: (K, T * d) of unit vectors for cosine.
    """
    tokens = query_row(query, metric).reshape(query.shape)
    padding = (tokens == 0).all(-1) if metric != "euclid" else tokens.new_zeros(len(tokens)).bool()
    rows = query.new_zeros(len(documents), query.numel())
    for row, document in zip(rows, documents, strict=True):
        vectors = normalize(document, dim=-1) if metric == "cosine" else document
        near = tokens @ vectors.mT
        if metric == "euclid":
            near = near - vectors.square().sum(-1) / 2
        matches = vectors[near.argmax(-1)]
        matches[padding] = 0
        row.copy_(matches.flatten())
    return rows


def maxsim(query: Tensor, documents: Sequence[Tensor], metric: Metric) -> Tensor:
    """Return how near documents are to a query, every token of which is matched anew.

    :param query: (T, d)
    :param documents: K matrices, (n_i, d) each.
    :param metric: the collection's distance.
    :return: (K,) sums of cosines or inner products, or minus half the sum of squared distances; larger is nearer.
    """
    return similarity(query_row(query, metric), document_rows(query, documents, metric), row_metric(metric))


def token_length(row: Tensor, size: int, metric: Metric) -> float:
    """Return the mean length of a stacked query's tokens, the unit of its scores where Qdrant makes each of length 1.

    :param row: (T * d,) a stacked query.
    :param size: d.
    :param metric: the collection's distance.
    :return: the mean over the tokens that are not padding; 1 unless the distance is cosine's.
    """
    if metric != "cosine":
        return 1.0
    lengths = row.reshape(-1, size).norm(dim=-1)
    return float(lengths[lengths > 0].mean()) if bool((lengths > 0).any()) else 1.0
