"""What a kind of vector has to know, and the plainest kind: one dense vector, which is its own row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from qdrant_client import models
from torch import Tensor

from llama_index_refine.maxsim import row_metric
from llama_index_refine.qdrant.vectors import Space, Vectors, agree
from llama_index_refine.similarity import Metric, passes, score_of_similarity, similarity, similarity_of_score

if TYPE_CHECKING:
    from llama_index_refine.qdrant.background import Background

Row = NDArray[np.float32]

# Similarities that are apart by less than this part of their mean are all the same.
ROUNDING = 1e-6


class Query(ABC):
    """What a search is for, whatever restricts it."""

    # Whether scores say only in which order points come, and not how near they are.
    ranks = False
    # Whether it scores every point that has the vectors, whatever it has in common with the query.
    finds_all = True
    # Whether a score threshold is for one part of the search, and not for the scores that it returns.
    fuses = False
    # Points with a worse score are left out, None for none.
    threshold: float | None = None

    @property
    def dense(self) -> Row | None:
        """(d,) the dense vector that is searched for, None for none."""
        return None

    @property
    def telling(self) -> Query | None:
        """The part of it whose scores tell how near points are, whatever chose them; None where none does."""
        return self

    @abstractmethod
    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write it as fields of a `QueryRequest`.

        :param space: what is searched.
        :param restricted: "filter", "params" and "score_threshold" of the search.
        :param depth: how deep rankings are that become one.
        :return: the fields.
        """

    @abstractmethod
    def vectors(self, space: Space) -> dict[str, Any]:
        """Return what it searches for, as Qdrant takes it, by the name of the vector that is searched."""

    @abstractmethod
    def view(self, space: Space) -> View:
        """Return how refining it sees the collection.

        :param space: what is searched.
        """

    def agrees(self, vectors: Vectors, scores: Sequence[float], space: Space) -> bool:
        """Say whether scores of points are what it makes of their vectors; True where that cannot be told."""
        return True

    def misfit(self, space: Space) -> str | None:
        """Say why it cannot search there, None where it can."""
        return None


class View(ABC):
    """How one query sees the collection while it is refined: documents and the query are rows of numbers.

    A refined query leaves the scale of the first one's scores. Heights are measured above the collection: with m and s
    the mean and the standard deviation of a sample's similarities to the first query, and m' and s' of those to the
    refined one, a similarity t to the first is as high as m' + (t - m) / s * s' to the refined one.

    :param first: the first query.
    :param space: what is searched.
    """

    # Whether what documents have stored is too much to bring for any but those that are graded.
    heavy = False
    # Whether a row means the same to another query, or later.
    lasts = True
    # The standard deviation of the first similarity over the collection, None for that over the background.
    scatter: float | None = None
    # How the search sees the collection that chooses what this one compares, None where there is none.
    ahead: View | None = None

    def __init__(self, first: Any, space: Space) -> None:
        self._first = first
        self._space = space
        # The distance between rows, and the collection's.
        self.metric: Metric = space.metric
        self.distance: Metric = space.metric
        # What shows the scale of similarities.
        self._sample = Vectors.none()

    def meet(self, shown: Vectors, background: Background | None) -> None:
        """Take in what decides the scale of rows and scores, before the first rows are made.

        :param shown: the documents that the first search found.
        :param background: a sample of the collection, None for none.
        """
        self._sample = background.vectors if background and len(background.vectors) > 1 else shown

    @property
    @abstractmethod
    def row(self) -> Row:
        """(D,) the first query, as wide as the rows that were last made."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which a row is written for whoever reads the refinement."""
        return self.row.shape

    @abstractmethod
    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return (n, D) rows for each of some vectors, all of one width."""

    @abstractmethod
    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query of the search for a refined row, with the first one's threshold carried over.

        :param row: (D,) the row.
        :param ahead: the refined row of the search ahead, None where that is still the first.
        """

    def unit(self, row: Row) -> float:
        """Return the length that counts as one in the scores of a search for a refined row, (D,)."""
        return 1.0

    def threshold(self, row: Row, threshold: float | None) -> float | None:
        """Carry a score threshold of the first search over to the search for a refined row.

        :param row: (D,) the refined row.
        :param threshold: Qdrant's score for the first query, None for none.
        :return: the score that is as high above the collection for the refined one.
        """
        if threshold is None:
            return None
        # A threshold may lie beyond what a cosine can be: then nothing is so near.
        metric = row_metric(self.distance)
        first = similarity_of_score(torch.tensor(threshold, dtype=torch.float64), metric)
        return float(score_of_similarity(self._moved(first, self.row, row), metric))

    def scores(self, row: Row, similarities: Tensor) -> Tensor | None:
        """Return scores that can be compared with those of the first search.

        :param row: (D,) a refined row.
        :param similarities: (n,) similarities to it, in units of Qdrant's scores.
        :return: (n,) scores as high above the collection for the first query; None where scores only say places.
        """
        return score_of_similarity(self._moved(similarities, row, self.row), self.metric)

    def passes(self, row: Row, rows: Tensor, threshold: float | None) -> list[bool]:
        """Say which documents a search for a row may return: those whose score is better than its threshold.

        :param row: (D,) the refined row.
        :param rows: (n, D) the documents.
        :param threshold: that of the search.
        """
        near = similarity(torch.as_tensor(row), rows, self.metric) / self.unit(row)
        admitted: list[bool] = passes(score_of_similarity(near, self.metric), threshold, self.metric).tolist()
        return admitted

    def _moved(self, similarities: Tensor, begin: Row, end: Row) -> Tensor:
        """Return what is as high for one row as similarities are for another."""
        (mean, spread), (other, wide) = map(self._scale, (begin, end))
        return other + (similarities - mean) / spread * wide if spread and wide else similarities

    def _scale(self, row: Row) -> tuple[float, float]:
        """Return the mean and the standard deviation of the sample's similarities; 0 where they are all the same."""
        if len(self._sample) < 2:
            return 0.0, 0.0
        near = self._similarities(row).double()
        mean, spread = float(near.mean()), float(near.std(unbiased=False))
        return mean, spread if spread > ROUNDING * abs(mean) else 0.0

    def _similarities(self, row: Row) -> Tensor:
        """Return the sample's similarities to a row, in units of Qdrant's scores."""
        (rows,) = self.rows(self._sample)
        return similarity(torch.as_tensor(row), rows, self.metric)


class Numbers(list[Any]):
    """Numbers that nobody changes, so that a deep copy, as qdrant-client makes of each request, may share them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Numbers:
        return self


def nearest_to(vector: np.ndarray | Tensor, space: Space) -> models.NearestQuery:
    """Write a query vector as Qdrant reads it.

    :param vector: (d,) in the collection's space; (T, d) for a multivector.
    :param space: what is searched.
    :return: the query.
    """
    # Checking each number would cost more than writing them.
    return models.NearestQuery.model_construct(nearest=Numbers(space.stored(vector).tolist()))


@dataclass(frozen=True, eq=False)
class DenseQuery(Query):
    """The nearest to a vector.

    :param vector: (d,)
    :param threshold: points with a worse score are left out.
    """

    vector: Row
    threshold: float | None = None

    @classmethod
    def of(cls, embedding: Any, threshold: float | None = None) -> DenseQuery:
        """Read a query's embedding. :raises ValueError: it is no vector, or holds what is not finite."""
        vector = np.asarray(embedding, dtype=np.float32)
        if vector.ndim != 1:
            raise ValueError(f"the query's embedding must be one vector, (d,), got the shape {vector.shape}")
        if not np.isfinite(vector).all():
            raise ValueError("the query's embedding holds NaN or infinity")
        return cls(vector, threshold)

    @property
    def dense(self) -> Row:
        """(d,) the vector."""
        return self.vector

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write it. See `Query`."""
        return {"query": nearest_to(self.vector, space), "using": space.name or None, **restricted}

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        return {space.name or "": space.stored(self.vector)}

    def view(self, space: Space) -> DenseView:
        """See `Query`."""
        return DenseView(self, space)

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
    """Rows are the stored vectors."""

    _first: DenseQuery

    @property
    def row(self) -> Row:
        """(d,) the first query's vector."""
        return self._first.vector

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return the vectors."""
        return [vectors.dense for vectors in some]

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query for a vector."""
        return DenseQuery(row, self.threshold(row, self._first.threshold))

    def _similarities(self, row: Row) -> Tensor:
        """See `View`. What Qdrant stores as whole numbers is searched by whole numbers."""
        return similarity(torch.as_tensor(self._space.stored(row)), self._sample.dense, self.metric)
