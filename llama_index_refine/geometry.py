"""One normal form for the three distances: a similarity that is linear in the query, at a scale of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "dot", "euclid"]
METRICS: tuple[Metric, ...] = ("cosine", "dot", "euclid")


@dataclass(frozen=True)
class Normal:
    """B problems in normal form: document i scores rows_i.x + offset_i, and x starts at start.

    :param start: (B, d) where the query stands.
    :param rows: (B, M, d) the documents.
    :param offset: (B, M) what a document scores whatever the query.
    :param origin: (B, d) and scale (B,): the query in the collection's space is origin + scale * x.
    """

    start: Tensor
    rows: Tensor
    offset: Tensor
    origin: Tensor
    scale: Tensor

    def to_collection(self, x: Tensor) -> Tensor:
        """(B, d) vectors of the normal form, in the collection's space."""
        return self.origin + self.scale[:, None] * x


def normal_form(query: Tensor, documents: Tensor, metric: Metric) -> Normal:
    """Write the collection's similarity as rows.x + offset.

    cosine: documents at unit length, so that the order by rows.x is the order by cosine. dot: as it is. In both the
    query's length does not change any order, so it is taken as 1. euclid: -|y - d|^2 / 2 with y = q + r x and
    e = (d - q) / r is r^2 (e.x - |e|^2 / 2) and a term that is the same for all documents; r, the root mean square
    distance from query to documents, makes it independent of the vectors' unit.

    :param query: (B, d), not zero for cosine and dot.
    :param documents: (B, M, d), not zero for cosine.
    :param metric: the collection's distance.
    :return: the normal form.
    """
    if metric == "euclid":
        rows = documents - query[:, None]
        scale = rows.square().sum(-1).mean(-1).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
        rows = rows / scale[:, None, None]
        return Normal(torch.zeros_like(query), rows, -rows.square().sum(-1) / 2, query, scale)
    scale = query.norm(dim=-1)
    rows = torch.nn.functional.normalize(documents, dim=-1) if metric == "cosine" else documents
    offset = rows.new_zeros(rows.shape[:2])
    return Normal(query / scale[:, None], rows, offset, torch.zeros_like(query), scale)


def similarity(query: Tensor, documents: Tensor, metric: Metric) -> Tensor:
    """Return the similarity that the normal form is linear in, in the collection's units; larger is nearer.

    :param query: (d,) vector in the collection's space.
    :param documents: (K, d) vectors.
    :param metric: the collection's distance.
    :return: (K,) cosine, inner product, or minus half the squared distance.
    """
    if metric == "euclid":
        return -(documents - query).square().sum(-1) / 2
    if metric == "cosine":
        query = torch.nn.functional.normalize(query, dim=-1)
        documents = torch.nn.functional.normalize(documents, dim=-1)
    return documents @ query


def similarity_of_score(scores: Tensor, metric: Metric) -> Tensor:
    """Turn Qdrant's scores, which are distances for euclid, into similarities."""
    return -scores.square() / 2 if metric == "euclid" else scores


def score_of_similarity(similarities: Tensor, metric: Metric) -> Tensor:
    """Turn similarities into Qdrant's scores."""
    return (-2 * similarities).clamp_min(0).sqrt() if metric == "euclid" else similarities
