"""What a kind of vector has to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_index_refine.qdrant.space import Space
from llama_index_refine.qdrant.vectors import Vectors
from llama_index_refine.similarity import Metric, passes, score_of_similarity, similarity

if TYPE_CHECKING:
    from llama_index_refine.qdrant.background import Background

Row = NDArray[np.float32]


class Query(ABC):
    """What a search is for, whatever restricts it."""

    # Whether scores say only in which order points come, and not how near they are.
    ranks = False
    # Whether it scores every point that has the vectors, whatever it has in common with the query.
    finds_all = True
    # Whether a score threshold is for one part of the search, and not for the scores that it returns.
    fuses = False

    @property
    def dense(self) -> Row | None:
        """(d,) the dense vector that is searched for, None for none."""
        return None

    @property
    def telling(self) -> Query | None:
        """The part of it whose scores tell how near points are, whatever chose them; None where none does."""
        return None

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

    def larger_is_nearer(self, space: Space) -> bool:
        """Say whether a larger score is a nearer point's."""
        return True

    def agrees(self, vectors: Vectors, scores: Sequence[float], space: Space) -> bool:
        """Say whether scores of points are what it makes of their vectors; True where that cannot be told."""
        return True

    def misfit(self, space: Space) -> str | None:
        """Say why it cannot search there, None where it can."""
        return None


class View(ABC):
    """How one query sees the collection while it is refined: documents and the query are rows of numbers."""

    # The distance between rows, and the collection's.
    metric: Metric
    distance: Metric
    # Whether what documents have stored is too much to bring for any but those that are graded.
    heavy = False
    # Whether a row means the same to another query, or later.
    lasts = True

    def meet(self, shown: Vectors, background: Background | None) -> None:  # noqa: B027
        """Take in what decides the scale of the rows, before the first of them are made: nothing, as a rule.

        :param shown: the documents that the first search found.
        :param background: a sample of the collection, None for none.
        """

    @property
    def scatter(self) -> float | None:
        """The standard deviation of the first similarity over the collection, None for that over the background."""
        return None

    @property
    @abstractmethod
    def row(self) -> Row:
        """(D,) the first query, as wide as the rows that were last made."""

    @abstractmethod
    def rows(self, *some: Vectors) -> list[Tensor]:
        """Return (n, D) rows for each of some vectors, all of one width."""

    @property
    def ahead(self) -> View | None:
        """How the search sees the collection that chooses what this one compares, None where there is none."""
        return None

    @abstractmethod
    def refined(self, row: Row, ahead: Row | None = None) -> Query:
        """Return the query of the search for a refined row.

        :param row: (D,) the row.
        :param ahead: the refined row of the search ahead, None where that is still the first.
        """

    def unit(self, row: Row) -> float:
        """Return the length that counts as one in the scores of a search for a refined row, (D,)."""
        return 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which a row is written for whoever reads the refinement."""
        return self.row.shape

    def passes(self, row: Row, rows: Tensor, threshold: float | None) -> list[bool]:
        """Say which documents a search for a row may return: those whose score is better than its score threshold.

        :param row: (D,) the query.
        :param rows: (n, D) the documents.
        :param threshold: the threshold, None for none.
        """
        near = similarity(torch.as_tensor(row), rows, self.metric)
        admitted: list[bool] = passes(score_of_similarity(near, self.metric), threshold, self.metric).tolist()
        return admitted
