"""The similarity to a dense vector as an inner product, for whatever is to be added to it."""

from __future__ import annotations

import numpy as np
import torch
from qdrant_client import models
from torch import Tensor
from torch.nn.functional import normalize

from llama_index_refine.qdrant.views.base import Row
from llama_index_refine.similarity import Metric, score_of_similarity

# How much longer than a document's way to the query the coordinate is that makes distances linear.
FAR = 100.0


class Linear:
    """Rows whose inner product with the query's is the similarity, but for a constant that all documents share.

    Under cosine, vectors have length 1. For Euclid, with e the way from the first query q to a document and y = q + x,
    -|y - d|^2 / 2 is e.x - |e|^2 / 2 and a constant: rows are [e, -|e|^2 / (2c)], and the query is [x, c]. What counts
    of a moved query is x over its last coordinate; c is long enough for that not to tell documents apart.

    :param first: (d,) the first query.
    :param metric: the distance.
    """

    def __init__(self, first: Row, metric: Metric) -> None:
        self._metric = metric
        self._first = torch.as_tensor(first, dtype=torch.float32)
        self._far = 1.0

    def meet(self, documents: Tensor) -> None:
        """Take in how far documents, (n, d), are."""
        if self._metric == "euclid" and len(documents):
            self._far = FAR * max(float((documents - self._first).norm(dim=-1).mean()), 1e-12)

    @property
    def row(self) -> Tensor:
        """(r,) the first query."""
        if self._metric == "euclid":
            return torch.cat([torch.zeros_like(self._first), torch.tensor([self._far])])
        return normalize(self._first, dim=-1) if self._metric == "cosine" else self._first

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return len(self._first) + (self._metric == "euclid")

    def rows(self, documents: Tensor) -> Tensor:
        """(n, r) rows of documents, (n, d)."""
        if not len(documents):
            return torch.empty(0, self.width)
        if self._metric == "euclid":
            ways = documents - self._first
            return torch.cat([ways, -ways.square().sum(-1, keepdim=True) / (2 * self._far)], dim=-1)
        return normalize(documents, dim=-1) if self._metric == "cosine" else documents

    def vector(self, row: Tensor) -> Row:
        """(d,) the vector to search for, of a moved row."""
        if self._metric == "euclid":
            row = self._first + row[:-1] * (self._far / row[-1])
        return np.asarray(row, dtype=np.float32)

    def length(self, row: Tensor) -> float:
        """Return what one of Qdrant's similarities to that vector is worth in inner products with the row."""
        if self._metric == "euclid":
            return float(row[-1]) / self._far
        return float(row.norm()) if self._metric == "cosine" else 1.0

    def constant(self, row: Tensor) -> float:
        """Return what inner products with a row have more than Qdrant's similarities, all documents alike."""
        # Half the squared length of the query's way.
        return float((row[:-1] * (self._far / row[-1])).square().sum() / 2) if self._metric == "euclid" else 0.0

    def scores(self, row: Tensor, rows: Tensor) -> Tensor:
        """Return Qdrant's scores of documents, (n, r), for that vector."""
        return score_of_similarity(rows @ row / self.length(row) - self.constant(row), self._metric)

    def expression(self, variable: str, weight: float) -> models.MultExpression:
        """Write a weighed similarity as a part of a formula over Qdrant's scores."""
        if self._metric != "euclid":
            return models.MultExpression(mult=[weight, variable])
        squared = models.PowExpression(pow=models.PowParams(base=variable, exponent=2.0))
        return models.MultExpression(mult=[-weight / 2, squared])
