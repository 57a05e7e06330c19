"""A matrix, with a vector a token, compared by MaxSim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from qdrant_client import models
from torch import Tensor

from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.qdrant.views.dense import TOLERANCE, DenseQuery, DenseView, Query, Row, View, stored
from llama_index_refine.similarity import (
    document_rows,
    maxsim,
    query_row,
    row_metric,
    similarity_of_score,
    token_length,
)


@dataclass(frozen=True, eq=False)
class MatrixQuery(Query):
    """The nearest to a matrix, of all points or of those nearest to a vector.

    :param matrix: (T, d)
    :param near: the search that chooses which points are compared, None to compare all.
    :param least: how many points that search finds at least.
    :param threshold: points with a worse MaxSim are left out.
    """

    matrix: Row
    near: DenseQuery | None = None
    least: int = 0
    threshold: float | None = None
    dense = None

    @property
    def telling(self) -> Query:
        """The matrix, whatever chose the points."""
        return self if self.near is None else replace(self, near=None)

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write it, the search that chooses as a prefetch. See `Query`."""
        nearest = models.NearestQuery(nearest=stored(self.matrix, space).tolist())
        comparing = {"query": nearest, "using": space.name or None}
        if self.near is None or space.prefetch is None:
            return {**comparing, **restricted}
        # A score threshold is MaxSim's.
        chosen = self.near.fields(space.prefetch, {**restricted, "score_threshold": None}, depth)
        prefetch = [models.Prefetch(**chosen, limit=max(depth, self.least))]
        whole = {name: restricted.get(name) for name in ("params", "score_threshold")}
        return {**comparing, **whole, "prefetch": prefetch}

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        ahead = self.near.vectors(space.prefetch) if self.near is not None and space.prefetch is not None else {}
        return {space.name or "": stored(self.matrix, space), **ahead}

    def view(self, space: Space) -> MatrixView:
        """See `Query`."""
        return MatrixView(self, space)

    def agrees(self, vectors: Vectors, scores: Sequence[float], space: Space) -> bool:
        """Say whether the scores are those of the matrices."""
        query = torch.as_tensor(stored(self.matrix, space))
        expected = maxsim(query, vectors.matrices, space.metric)
        given = similarity_of_score(torch.tensor(scores, dtype=torch.float32), space.metric)
        scale = torch.tensor([_range(query, matrix, space.metric) for matrix in vectors.matrices])
        return bool(((given - expected).abs() <= TOLERANCE * scale).all())

    def misfit(self, space: Space) -> str | None:
        """Say whether tokens have another size, or the vector of the search that chooses has."""
        if self.matrix.shape[1] != space.size:
            return (
                f"the query's matrix has vectors of {self.matrix.shape[1]} dimensions, the multivector {space.name!r} "
                f"of the collection has {space.size}: set multivector_query_fn to the model that made the collection's"
            )
        return self.near.misfit(space.prefetch) if self.near is not None and space.prefetch is not None else None


class MatrixView(View):
    """A row is, for each token of the query, the vector of the document that it matched best at the first query."""

    _first: MatrixQuery
    heavy = True

    def __init__(self, first: MatrixQuery, space: Space) -> None:
        super().__init__(first, space)
        self._matrix = torch.tensor(stored(first.matrix, space), dtype=torch.float32)
        self.metric = row_metric(space.metric)
        self.shape = first.matrix.shape
        # Under cosine rows are unit vectors.
        self.whole = space.whole and space.metric != "cosine"
        if first.near is not None and space.prefetch is not None:
            self.ahead = DenseView(first.near, space.prefetch)

    @property
    def row(self) -> Row:
        """(T * d,) the tokens."""
        return np.asarray(query_row(self._matrix, self.distance))

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Stack the matches."""
        return [document_rows(self._matrix, vectors.matrices, self.distance) for vectors in some]

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query for a matrix, and for the vector that chooses."""
        near = self._first.near if ahead is None else DenseQuery(ahead)
        threshold = self.threshold(row, self._first.threshold)
        return replace(self._first, matrix=row.reshape(self._first.matrix.shape), near=near, threshold=threshold)

    def unit(self, row: Row) -> float:
        """Return the tokens' mean length where Qdrant makes each of length 1."""
        return token_length(torch.as_tensor(row), self.space.size, self.distance)

    def _similarities(self, row: Row) -> Tensor:
        """Match every token of the row anew."""
        tokens = stored(row.reshape(self._first.matrix.shape), self.space)
        return maxsim(torch.as_tensor(tokens), self._sample.matrices, self.distance)


def _range(query: Tensor, document: Tensor, metric: str) -> float:
    """Return how large a MaxSim of the two may be."""
    if metric == "cosine":
        return float(len(query))
    longest, lengths = document.norm(dim=-1).max(), query.norm(dim=-1)
    return float((longest * lengths).sum() if metric == "dot" else (longest.square() + lengths.square()).sum() / 2)
