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

from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.vectors import Space
from llama_index_refine.similarity import (
    Metric,
    passes,
    row_metric,
    score_of_similarity,
    similarity,
    similarity_of_score,
)

if TYPE_CHECKING:
    from llama_index_refine.qdrant.background import Background

Row = NDArray[np.float32]

# float16 keeps three digits. Another model moves a similarity by more than this part of its range.
TOLERANCE = 0.005
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
    # (d,) the dense vector that is searched for, None for none.
    dense: Row | None

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
    # Whether a row means the same to another query, or later; elsewhere scores say only places.
    lasts = True
    # The standard deviation of the first similarity over the collection, None for that over the background.
    scatter: float | None = None
    # The shape of the matrix that a row stands for, None where it is what it is.
    shape: tuple[int, ...] | None = None
    # How the search sees the collection that chooses what this one compares, None where there is none.
    ahead: View | None = None

    def __init__(self, first: Any, space: Space) -> None:
        self._first = first
        self.space = space
        # Whether a refined row is searched for as whole numbers, which may not be what it is.
        self.whole = space.whole
        # The distance between rows, and the collection's.
        self.metric: Metric = space.metric
        self.distance: Metric = space.metric
        # What shows the scale of similarities.
        self._sample = Vectors()

    def meet(self, shown: Vectors, background: Background | None) -> None:
        """Take in what decides the scale of rows and scores, before the first rows are made.

        :param shown: the documents that the first search found.
        :param background: a sample of the collection, None for none.
        """
        self._sample = background.vectors if background and len(background.vectors.dense) > 1 else shown

    @property
    @abstractmethod
    def row(self) -> Row:
        """(D,) the first query, as wide as the rows that were last made."""

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

    def scores(self, row: Row, similarities: Tensor) -> Tensor:
        """Return scores that can be compared with those of the first search, where rows last.

        :param row: (D,) a refined row.
        :param similarities: (n,) similarities to it, in units of Qdrant's scores.
        :return: (n,) scores as high above the collection for the first query.
        """
        return score_of_similarity(self._moved(similarities, row, self.row), self.metric)

    def passes(self, row: Row, rows: Tensor, threshold: float) -> list[bool]:
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
        if len(self._sample.dense) < 2:
            return similarities
        first, second = self._similarities(begin).double(), self._similarities(end).double()
        mean, spread = float(first.mean()), float(first.std(unbiased=False))
        other, wide = float(second.mean()), float(second.std(unbiased=False))
        # Where similarities are all the same, nothing shows how far they are apart.
        if not (spread > ROUNDING * abs(mean) and wide > ROUNDING * abs(other)):
            return similarities
        return other + (similarities - mean) / spread * wide

    def _similarities(self, row: Row) -> Tensor:
        """Return the sample's similarities to a row, in units of Qdrant's scores."""
        # What Qdrant stores as whole numbers is searched by whole numbers.
        return similarity(torch.as_tensor(stored(row, self.space)), self._sample.dense, self.metric)


def stored(vector: np.ndarray | Tensor, space: Space) -> np.ndarray:
    """Return a query vector as Qdrant compares it.

    :param vector: (d,) in the collection's space; (T, d) for a multivector.
    :param space: what is searched.
    :return: the same; where Qdrant stores whole numbers from 0 to 255, within their range and rounded. Under cosine,
        which lengths do not change, it is as long as it can be there rather than cut off.
    """
    numbers = np.asarray(vector)
    if not space.whole:
        return numbers
    if space.metric == "cosine":
        numbers = numbers.clip(0)
        numbers = numbers * (255 / np.maximum(numbers.max(-1, keepdims=True), 1e-30))
    return numbers.round().clip(0, 255)


@dataclass(frozen=True, eq=False)
class DenseQuery(Query):
    """The nearest to a vector.

    :param dense: (d,)
    :param threshold: points with a worse score are left out.
    """

    dense: Row
    threshold: float | None = None

    def fields(self, space: Space, restricted: dict[str, Any], depth: int) -> dict[str, Any]:
        """Write it. See `Query`."""
        nearest = models.NearestQuery(nearest=stored(self.dense, space).tolist())
        return {"query": nearest, "using": space.name or None, **restricted}

    def vectors(self, space: Space) -> dict[str, Any]:
        """See `Query`."""
        return {space.name or "": stored(self.dense, space)}

    def view(self, space: Space) -> DenseView:
        """See `Query`."""
        return DenseView(self, space)

    def agrees(self, vectors: Vectors, scores: Sequence[float], space: Space) -> bool:
        """Say whether the scores are those of the vectors."""
        query = torch.as_tensor(stored(self.dense, space))
        given = similarity_of_score(torch.tensor(scores, dtype=torch.float32), space.metric)
        apart = (given - similarity(query, vectors.dense, space.metric)).abs()
        if space.metric == "cosine":
            return bool((apart <= TOLERANCE).all())
        lengths, length = vectors.dense.norm(dim=-1), query.norm()
        scale = lengths * length if space.metric == "dot" else (lengths.square() + length.square()) / 2
        return bool((apart <= TOLERANCE * scale).all())

    def misfit(self, space: Space) -> str | None:
        """Say whether it is no vector, has another size, or holds what is not finite."""
        if self.dense.ndim != 1:
            return f"the query's embedding must be one vector, (d,), got the shape {self.dense.shape}"
        if not np.isfinite(self.dense).all():
            return "the query's embedding holds NaN or infinity"
        if len(self.dense) == space.size:
            return None
        return (
            f"the query's embedding has {len(self.dense)} dimensions, the vector {space.name!r} of the collection has "
            f"{space.size}: set embed_model to the model that embedded the collection"
        )


class DenseView(View):
    """Rows are the stored vectors."""

    _first: DenseQuery

    @property
    def row(self) -> Row:
        """(d,) the first query's vector."""
        return self._first.dense

    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return the vectors."""
        return [vectors.dense for vectors in some]

    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query for a vector."""
        return DenseQuery(row, self.threshold(row, self._first.threshold))
