"""One normal form for the three distances: a similarity that is linear in the query, at a scale of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama_index_refine.refining.arrays import Rows, joined, lengths_of, to_numpy
from llama_index_refine.similarity import Metric


@dataclass(frozen=True)
class Normal:
    """B problems in normal form: document i scores rows_i.x / lengths_i + offset_i, and x starts at start.

    The background is kept apart from the graded documents, because many queries may share it, and the lengths from the
    rows, because to divide a few products costs less than to divide the rows.

    :param metric: the collection's distance.
    :param start: (B, d) where the query stands.
    :param graded: (B, K, d) rows of the graded documents.
    :param background: (N, d) rows of the background, or (B, N, d) where each query has its own; N may be 0.
    :param lengths: (B, K + N) or, where it is the same for all rows, (B, 1).
    :param offset: (B, K + N) what a document scores whatever the query, or (B, 1) where all score the same.
    :param origin: (B, d) and scale (B,): the query in the collection's space is origin + scale * x.
    """

    metric: Metric
    start: Rows
    graded: Rows
    background: Rows
    lengths: Rows
    offset: Rows
    origin: Rows
    scale: Rows

    def to_collection(self, x: Rows) -> Rows:
        """(B, d) vectors of the normal form, in the collection's space."""
        return self.origin + self.scale[:, None] * x

    def scores(self, x: Rows) -> Rows:
        """(B, K + N) scores of all documents at x, (B, d)."""
        graded = (self.graded @ x[:, :, None])[:, :, 0]
        shared = self.background.ndim == 2
        background = x @ self.background.T if shared else (self.background @ x[:, :, None])[:, :, 0]
        return joined([graded, background], 1) / self.lengths + self.offset

    def gram(self) -> NDArray[np.float64]:
        """(B, M, M) inner products of the rows over their lengths, M = K + N."""
        batch, count = self.graded.shape[:2]
        every = count + self.background.shape[-2]
        products = np.empty((batch, every, every))
        across = to_numpy(self.graded @ self.background.swapaxes(-1, -2))
        products[:, :count, :count] = to_numpy(self.graded @ self.graded.swapaxes(-1, -2))
        products[:, :count, count:], products[:, count:, :count] = across, across.swapaxes(-1, -2)
        products[:, count:, count:] = to_numpy(self.background @ self.background.swapaxes(-1, -2))
        lengths = to_numpy(self.lengths)
        products /= lengths[:, :, None]
        products /= lengths[:, None, :]
        return products

    def combine(self, weights: Rows) -> Rows:
        """(B, d) sums of the rows over their lengths, by weights, (B, M)."""
        count, weights = self.graded.shape[1], weights / self.lengths
        graded, rest = (weights[:, None, :count] @ self.graded)[:, 0], weights[:, count:]
        shared = self.background.ndim == 2
        return graded + (rest @ self.background if shared else (rest[:, None] @ self.background)[:, 0])

    def similarity(self, scores: Rows, x: Rows) -> Rows:
        """Turn scores at x into similarities to that vector, in the collection's units.

        :param scores: (B, n) scores of the normal form.
        :param x: (B, d) the vectors they belong to.
        :return: (B, n) as `similarity` gives them.
        """
        if self.metric == "euclid":
            scores = scores - (x * x).sum(-1)[:, None] / 2
        return self.unit(x)[:, None] * scores

    def unit(self, x: Rows) -> Rows:
        """(B,) similarity in the collection's units per score of the normal form, at x."""
        if self.metric == "cosine":
            return 1 / lengths_of(x)
        return self.scale if self.metric == "dot" else self.scale**2


def normal_form(query: Rows, documents: Rows, background: Rows, metric: Metric) -> Normal:
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
    origin, scale = 0 * query, _lengths("query", query, metric != "euclid")
    if metric == "euclid":
        documents, background = documents - query[:, None], background - query[:, None]
        origin, scale = query, (documents * documents).sum(-1).mean(-1).clip(1e-30) ** 0.5
        lengths = joined([lengths_of(documents), lengths_of(background)], 1) / scale[:, None]
        return Normal(metric, 0 * query, documents, background, scale[:, None], -lengths * lengths / 2, origin, scale)
    start = query / scale[:, None]
    none = 0 * start[:, :1]
    lengths = none + 1
    if metric == "cosine":
        lengths = joined([_lengths("documents", documents), none + _lengths("background", background)], 1)
    return Normal(metric, start, documents, background, lengths, none, origin, scale)


def _lengths(name: str, vectors: Rows, needed: bool = True) -> Rows:
    lengths = lengths_of(vectors)
    if needed and len(lengths) and not float(lengths.min()) > 0:
        raise ValueError(f"{name} holds a zero vector, which has no direction")
    return lengths
