"""How many documents are usually relevant to a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]

# Numbers of documents that are told apart, two for each doubling, from a quarter of a document to a million.
EDGES = 2.0 ** np.arange(-2, 20.5, 0.5)
# How many queries' worth the belief counts that all of them are equally likely.
BEFOREHAND = 2.0
# Other questions are asked, or another collection, once in some two hundred queries.
CHANGE = 0.005


@dataclass(frozen=True)
class Abundance:
    """What past queries say of the number of documents that are relevant to the next one.

    Twenty grades at the top say little of how many documents are relevant further down. The queries of one application
    are alike in that, so what each one's grades say of its number, vague as it is, is added up, and is where the next
    one begins (empirical Bayes, Robbins 1956).

    :param counts: (47,) how many queries had so many, each shared out as its grades leave it open.
    """

    counts: Vector

    @classmethod
    def unknown(cls) -> Abundance:
        """Return what is known before any query."""
        return cls(np.zeros(len(EDGES) + 1))

    def valid(self) -> bool:
        """Whether these are counts, as they must be where they come from a file."""
        counts = self.counts
        return counts.shape == (len(EDGES) + 1,) and bool(np.isfinite(counts).all() and (counts >= 0).all())

    def log_odds(self, numbers: ArrayLike) -> Vector:
        """Say how much likelier numbers are than beforehand, when each doubling was as likely as another.

        :param numbers: (n,) numbers of relevant documents, at least 0.
        :return: (n,) in nats.
        """
        usual = 1 / len(self.counts)
        shares = (BEFOREHAND * usual + self.counts) / (BEFOREHAND + self.counts.sum())
        odds: Vector = np.log(shares / usual)[_places(numbers)]
        return odds

    def after(self, numbers: ArrayLike, weights: ArrayLike) -> Abundance:
        """Return what is known once another query has been graded.

        :param numbers: (n,) numbers of documents that may be relevant to it.
        :param weights: (n,) their probabilities; they add up to 1, or less where the grades may be a guesser's.
        :return: the same and one more query.
        """
        more = np.bincount(_places(numbers), np.asarray(weights, dtype=np.float64), minlength=len(self.counts))
        return Abundance((1 - CHANGE) * self.counts + more)


def _places(numbers: ArrayLike) -> NDArray[np.intp]:
    return np.digitize(np.asarray(numbers, dtype=np.float64), EDGES)
