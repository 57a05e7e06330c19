"""One dense vector: it is its own row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.vectors import Vectors, agree
from llama_index_refine.qdrant.views.base import Query, Row, View


@dataclass(frozen=True, eq=False)
class DenseQuery(Query):
    """The nearest to a vector.

    :param vector: (d,)
    """

    vector: Row

    @property
    def dense(self) -> Row:
        """(d,) the vector."""
        return self.vector

    @property
    def telling(self) -> Query:
        """All of it."""
        return self

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write it. See `Query`."""
        return {"query": space.query(self.vector), "using": space.name or None, **restricted}

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        return {space.name or "": space.stored(self.vector)}

    def view(self, space: Space) -> DenseView:
        """See `Query`."""
        return DenseView(self, space)

    def larger_is_nearer(self, space: Space) -> bool:
        """Say no for distances."""
        return space.metric != "euclid"

    def agrees(self, vectors: Vectors, scores: Sequence[float], space: Space) -> bool:
        """Say whether the scores are those of the vectors."""
        return agree(vectors.dense, scores, torch.as_tensor(space.stored(self.vector)), space.metric)

    def misfit(self, space: Space) -> str | None:
        """Say whether the vector has another size."""
        if self.vector.shape == (space.size,):
            return None
        return (
            f"the query's embedding has {len(self.vector)} dimensions, the vector {space.name!r} of the collection has "
            f"{space.size}: set embed_model to the model that embedded the collection"
        )


class DenseView(View):
    """Rows are the stored vectors.

    :param first: the first query.
    :param space: what is searched.
    """

    def __init__(self, first: DenseQuery, space: Space) -> None:
        self._first = first
        self.metric = self.distance = space.metric

    @property
    def row(self) -> Row:
        """(d,) the first query's vector."""
        return self._first.vector

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return the vectors."""
        return [vectors.dense for vectors in some]

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query for a vector."""
        return DenseQuery(row)
