"""A sparse vector alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from qdrant_client import models
from torch import Tensor

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.vectors import Vectors
from llama_index_refine.qdrant.views.base import Query, Row, View
from llama_index_refine.qdrant.views.terms import Terms


@dataclass(frozen=True, eq=False)
class SparseQuery(Query):
    """The points with the most of some terms; those that have none of them are not found.

    :param words: the terms and their weights.
    """

    words: models.SparseVector
    finds_all = False

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write it. See `Query`."""
        return {"query": self.words, "using": space.sparse, **restricted}

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        return {space.sparse or "": self.words}

    def view(self, space: Space) -> SparseView:
        """See `Query`."""
        return SparseView(self, space)


class SparseView(View):
    """Rows are weights of terms.

    :param first: the first query.
    :param space: what is searched.
    """

    metric = distance = "dot"
    lasts = False

    def __init__(self, first: SparseQuery, space: Space) -> None:
        self._first = first
        self._terms = Terms(first.words, space.idf)
        self._scatter: float | None = None

    def meet(self, shown: Vectors, background: Background | None) -> None:
        """See `View`."""
        self._terms.meet(background.words if background else None)
        (rows,) = self.rows(shown)
        self._scatter = self._terms.scatter((rows @ torch.as_tensor(self.row)).double().numpy())

    @property
    def scatter(self) -> float | None:
        """As a sample of the collection has it: most of a few documents have none of the query's terms."""
        return self._scatter

    @property
    def row(self) -> Row:
        """(D,) the first query's weights."""
        return self._terms.row

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return the weights."""
        return self._terms.rows(*some)

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query for some weights; the first one where they have not moved."""
        return self._first if unmoved(row, self.row) else SparseQuery(self._terms.query(row))


def unmoved(row: Row, first: Row) -> bool:
    """Say whether a row is that of the first query, up to rounding."""
    wide = np.zeros(len(first), dtype=np.float32)
    wide[: len(row)] = row
    return bool(np.linalg.norm(wide - first) <= 1e-5 * np.linalg.norm(first))
