"""A dense and a sparse vector, whose rankings are fused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qdrant_client import models

from llama_index_refine.qdrant.options import Hybrid
from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.views.base import Query, Row
from llama_index_refine.qdrant.views.dense import DenseQuery, DenseView


@dataclass(frozen=True, eq=False)
class HybridQuery(Query):
    """The first of two rankings.

    :param near: the dense search.
    :param words: the sparse one's query.
    :param how: how the two become one.
    """

    near: DenseQuery
    words: models.SparseVector
    how: Hybrid
    ranks = True

    @property
    def dense(self) -> Row:
        """(d,) the dense search's vector."""
        return self.near.vector

    @property
    def telling(self) -> Query:
        """The dense search."""
        return self.near

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write both as prefetches. See `Query`."""
        prefetch = [models.Prefetch(**self.near.fields(space, restricted, depth), limit=depth)]
        if not self.words.indices:
            return {"prefetch": prefetch, "query": models.FusionQuery(fusion=models.Fusion.RRF)}
        # A score threshold is the dense search's.
        sparse = {**restricted, "score_threshold": None, "limit": self.how.sparse_top_k or depth}
        prefetch.append(models.Prefetch(query=self.words, using=space.sparse, **sparse))
        return {"prefetch": prefetch, "query": self.how.query()}

    def view(self, space: Space) -> HybridView:
        """See `Query`."""
        return HybridView(self, space)

    def misfit(self, space: Space) -> str | None:
        """Say whether the dense vector has another size."""
        return self.near.misfit(space)


class HybridView(DenseView):
    """Rows are the stored dense vectors, and the words stay as they are.

    :param first: the first query.
    :param space: what is searched.
    """

    def __init__(self, first: HybridQuery, space: Space) -> None:
        super().__init__(first.near, space)
        self._whole = first

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query for a vector and the same words."""
        return replace(self._whole, near=DenseQuery(row))
