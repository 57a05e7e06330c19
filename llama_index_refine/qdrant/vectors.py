"""The vectors that points brought with them, as the collection stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from qdrant_client import models
from torch import Tensor

from llama_index_refine.similarity import Metric, similarity, similarity_of_score

# float16 keeps three digits. Another model moves a similarity by more than this part of its range.
TOLERANCE = 0.005


@dataclass(frozen=True)
class SparseVectors:
    """n sparse vectors, one after the other.

    :param terms: (m,) the indices of all of them.
    :param values: (m,) float32, their values.
    :param ends: (n,) where each one ends.
    """

    terms: NDArray[np.int64]
    values: NDArray[np.float32]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, vectors: Sequence[models.SparseVector]) -> SparseVectors:
        """Take them as Qdrant gives them."""
        return cls(
            np.fromiter(chain.from_iterable(one.indices for one in vectors), dtype=np.int64),
            np.fromiter(chain.from_iterable(one.values for one in vectors), dtype=np.float32),
            np.cumsum([len(one.indices) for one in vectors], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def rows(self) -> NDArray[np.int64]:
        """(m,) the vector that each index belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.ends, prepend=0))

    def at(self, places: Sequence[int]) -> SparseVectors:
        """Return some of them."""
        starts = np.r_[0, self.ends][:-1]
        spans = [np.arange(starts[at], self.ends[at]) for at in places]
        taken = np.concatenate([*spans, np.empty(0, dtype=np.int64)])
        return SparseVectors(self.terms[taken], self.values[taken], np.cumsum([len(one) for one in spans], dtype=int))

    def beside(self, other: SparseVectors) -> SparseVectors:
        """Return these and then others."""
        begin = self.ends[-1] if len(self) else 0
        return SparseVectors(
            np.r_[self.terms, other.terms], np.r_[self.values, other.values], np.r_[self.ends, other.ends + begin]
        )

    def near(self, others: SparseVectors, tolerance: float) -> bool:
        """Say whether they have the terms of others, and values that are off by no more than a share of the largest."""
        if not (np.array_equal(self.ends, others.ends) and np.array_equal(self.terms, others.terms)):
            return False
        return bool(np.all(np.abs(self.values - others.values) <= tolerance * np.abs(others.values).max(initial=0)))


@dataclass(frozen=True)
class Vectors:
    """What n points have stored under the vectors that are searched. A `View` makes rows of it.

    :param dense: (n, d) float32, (n, 0) where no dense vector is searched.
    :param matrices: n multivectors, (n_i, d) float32 each; none where no multivector is searched.
    :param sparse: their sparse vectors, None where none is searched.
    """

    dense: Tensor
    matrices: tuple[Tensor, ...] = ()
    sparse: SparseVectors | None = None

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
        matrices = tuple(self.matrices[at] for at in places if self.matrices)
        return Vectors(dense, matrices, self.sparse and self.sparse.at(places))

    def beside(self, other: Vectors) -> Vectors:
        """Return these and then those of other points."""
        some = [vectors for vectors in (self, other) if len(vectors)]
        if len(some) < 2:
            return (some or [self])[0]
        sparse = self.sparse.beside(other.sparse) if self.sparse and other.sparse else None
        return Vectors(torch.cat([self.dense, other.dense]), (*self.matrices, *other.matrices), sparse)

    def near(self, others: Vectors, tolerance: float) -> bool:
        """Say whether the points still have the vectors that they had.

        :param others: theirs before, in the same order.
        :param tolerance: how far each may be off, as a share of its length.
        """
        if len(self.matrices) != len(others.matrices) or (self.sparse is None) != (others.sparse is None):
            return False
        if self.sparse and others.sparse and not self.sparse.near(others.sparse, tolerance):
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
