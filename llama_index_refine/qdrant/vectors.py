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

    :param dense: (n, d) float32, (n, 0) where no dense vector is searched.
    :param matrices: n multivectors, (n_i, d) float32 each; none where no multivector is searched.
    """

    dense: Tensor
    matrices: tuple[Tensor, ...] = ()

    @classmethod
    def none(cls) -> Vectors:
        """Return the vectors of no points, or of points that brought none."""
        return cls(torch.empty(0, 0))

    def __len__(self) -> int:
        return len(self.dense)

    def at(self, places: Sequence[int]) -> Vectors:
        """Return those of some of the points."""
        # In numpy, which reads a list of places many times faster than torch.
        dense = torch.from_numpy(self.dense.numpy()[list(places)] if len(places) else self.dense.numpy()[:0])
        return Vectors(dense, tuple(self.matrices[at] for at in places if self.matrices))

    def beside(self, other: Vectors) -> Vectors:
        """Return these and then those of other points."""
        some = [vectors for vectors in (self, other) if len(vectors)]
        if len(some) < 2:
            return (some or [self])[0]
        return Vectors(torch.cat([self.dense, other.dense]), (*self.matrices, *other.matrices))

    def near(self, others: Vectors, tolerance: float) -> bool:
        """Say whether the points still have the vectors that they had.

        :param others: theirs before, in the same order.
        :param tolerance: how far each may be off, as a share of its length.
        """
        if len(self.matrices) != len(others.matrices):
            return False
        pairs = zip((self.dense, *self.matrices), (others.dense, *others.matrices), strict=True)
        return all(_near(now, before, tolerance) for now, before in pairs)


def _near(now: Tensor, before: Tensor, tolerance: float) -> bool:
    if now.shape != before.shape:
        return False
    return bool(((now - before).norm(dim=-1) <= tolerance * before.norm(dim=-1)).all())


def agree(vectors: Tensor, scores: Sequence[float], query: Tensor, metric: Metric) -> bool:
    """Say whether scores are what the distance makes of the vectors.

    :param vectors: (n, d)
    :param scores: (n,) Qdrant's scores.
    :param query: (d,) the query.
    :param metric: the distance.
    """
    given = similarity_of_score(torch.tensor(scores, dtype=torch.float32), metric)
    apart = (given - similarity(query, vectors, metric)).abs()
    if metric == "cosine":
        return bool((apart <= TOLERANCE).all())
    lengths = vectors.norm(dim=-1)
    scale = lengths * query.norm() if metric == "dot" else (lengths.square() + query.norm().square()) / 2
    return bool((apart <= TOLERANCE * scale).all())
