"""One normal form for the three distances: a similarity that is linear in the query, at a scale of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_index_refine.similarity import Metric


@dataclass(frozen=True)
class Normal:
    """B problems in normal form: document i scores rows_i.x + offset_i, and x starts at start.

    The background is kept apart from the graded documents, because many queries may share it.

    :param metric: the collection's distance.
    :param start: (B, d) where the query stands.
    :param graded: (B, K, d) rows of the graded documents.
    :param background: (N, d) rows of the background, or (B, N, d) where each query has its own; N may be 0.
    :param offset: (B, K + N) what a document scores whatever the query.
    :param origin: (B, d) and scale (B,): the query in the collection's space is origin + scale * x.
    """

    metric: Metric
    start: Tensor
    graded: Tensor
    background: Tensor
    offset: Tensor
    origin: Tensor
    scale: Tensor

    def to_collection(self, x: Tensor) -> Tensor:
        """(B, d) vectors of the normal form, in the collection's space."""
        return self.origin + self.scale[:, None] * x

    def scores(self, x: Tensor) -> Tensor:
        """(B, K + N) scores of all documents at x, (B, d)."""
        graded = (self.graded @ x[:, :, None])[:, :, 0]
        shared = self.background.ndim == 2
        background = x @ self.background.mT if shared else (self.background @ x[:, :, None])[:, :, 0]
        return torch.cat([graded, background], dim=1) + self.offset

    def gram(self) -> NDArray[np.float64]:
        """(B, M, M) inner products of the rows, M = K + N."""
        across = self.graded @ self.background.mT
        within = (self.background @ self.background.mT).expand(len(self.start), -1, -1)
        upper = torch.cat([self.graded @ self.graded.mT, across], dim=2)
        products: NDArray[np.float64] = (
            torch.cat([upper, torch.cat([across.mT, within], dim=2)], dim=1).double().cpu().numpy()
        )
        return products

    def combine(self, weights: Tensor) -> Tensor:
        """(B, d) sums of the rows by weights, (B, M)."""
        count = self.graded.shape[1]
        graded, rest = (weights[:, None, :count] @ self.graded)[:, 0], weights[:, count:]
        shared = self.background.ndim == 2
        return graded + (rest @ self.background if shared else (rest[:, None] @ self.background)[:, 0])

    def similarity(self, scores: Tensor, x: Tensor) -> Tensor:
        """Turn scores at x into similarities to that vector, in the collection's units.

        :param scores: (B, n) scores of the normal form.
        :param x: (B, d) the vectors they belong to.
        :return: (B, n) as `similarity` gives them.
        """
        if self.metric == "euclid":
            scores = scores - x.square().sum(-1, keepdim=True) / 2
        return self.unit(x)[:, None] * scores

    def unit(self, x: Tensor) -> Tensor:
        """(B,) similarity in the collection's units per score of the normal form, at x."""
        if self.metric == "cosine":
            lengths: Tensor = x.norm(dim=-1)
            return lengths.reciprocal()
        return self.scale if self.metric == "dot" else self.scale.square()


def normal_form(query: Tensor, documents: Tensor, background: Tensor, metric: Metric) -> Normal:
    """Write the collection's similarity as rows.x + offset.

    cosine: documents at unit length, so that the order by rows.x is the order by cosine. dot: as it is. In both the
    query's length does not change any order, so it is taken as 1. euclid: -|y - d|^2 / 2 with y = q + r x and
    e = (d - q) / r is r^2 (e.x - |e|^2 / 2) and a term that is the same for all documents; r, the root mean square
    distance from query to graded documents, makes it independent of the vectors' unit.

    :param query: (B, d), not zero for cosine and dot.
    :param documents: (B, K, d), not zero for cosine.
    :param background: (N, d) or (B, N, d), N may be 0.
    :param metric: the collection's distance.
    :return: the normal form.
    :raises ValueError: a zero vector that has no direction.
    """
    origin, scale = torch.zeros_like(query), _lengths("query", query, metric != "euclid")
    if metric == "euclid":
        documents, background = documents - query[:, None], background - query[:, None]
        origin, scale = query, documents.square().sum(-1).mean(-1).sqrt().clamp_min(1e-30)
        documents, background = documents / scale[:, None, None], background / scale[:, None, None]
        offset = -torch.cat([documents, background], dim=1).square().sum(-1) / 2
        return Normal(metric, torch.zeros_like(query), documents, background, offset, origin, scale)
    if metric == "cosine":
        documents = documents / _lengths("documents", documents)[..., None]
        background = background / _lengths("background", background)[..., None]
    offset = query.new_zeros(len(query), documents.shape[1] + background.shape[-2])
    return Normal(metric, query / scale[:, None], documents, background, offset, origin, scale)


def _lengths(name: str, vectors: Tensor, needed: bool = True) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    if needed and lengths.numel() and not float(lengths.min()) > 0:
        raise ValueError(f"{name} holds a zero vector, which has no direction")
    return lengths
