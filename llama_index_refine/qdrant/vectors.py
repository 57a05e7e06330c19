"""The vectors that points brought with them, as the collection stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama_index_refine.similarity import Metric, similarity, similarity_of_score

# float16 keeps three digits. Another model moves a similarity by more than this part of its range.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Vectors:
    """What n points have stored under the vectors that are searched. A `View` makes rows of it.

    :param dense: (n, d) float32.
    """

    dense: Tensor

    @classmethod
    def none(cls) -> Vectors:
        """Return the vectors of no points, or of points that brought none."""
        return cls(torch.empty(0, 0))

    def __len__(self) -> int:
        return len(self.dense)

    def at(self, places: Sequence[int]) -> Vectors:
        """Return those of some of the points."""
        return Vectors(self.dense[list(places)])

    def beside(self, other: Vectors) -> Vectors:
        """Return these and then those of other points."""
        some = [vectors for vectors in (self, other) if len(vectors)]
        return Vectors(torch.cat([vectors.dense for vectors in some])) if len(some) == 2 else (some or [self])[0]

    def near(self, others: Vectors, tolerance: float) -> bool:
        """Say whether the points still have the vectors that they had.

        :param others: theirs before, in the same order.
        :param tolerance: how far each may be off, as a share of its length.
        """
        if self.dense.shape != others.dense.shape:
            return False
        apart = (self.dense - others.dense).norm(dim=-1)
        return bool((apart <= tolerance * others.dense.norm(dim=-1)).all())


def agree(vectors: Tensor, scores: Sequence[float], query: Tensor, metric: Metric) -> bool:
    """Say whether scores are what the distance makes of the vectors.

    :param vectors: (n, d)
    :param scores: (n,) Qdrant's scores.
    :param query: (d,) the query.
    :param metric: the distance.
    """
    expected = similarity(query, vectors, metric)
    given = similarity_of_score(torch.tensor(scores, dtype=torch.float32), metric)
    if metric == "cosine":
        scale = torch.ones(len(vectors))
    else:
        lengths = vectors.norm(dim=-1)
        scale = lengths * query.norm() if metric == "dot" else (lengths.square() + query.norm().square()) / 2
    return bool(((given - expected).abs() <= TOLERANCE * scale).all())
