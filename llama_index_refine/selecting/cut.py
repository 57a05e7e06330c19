"""Where to cut, as far as the probabilities tell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llama_index_refine.refining.relevance import Ranking, Relevance

Array = NDArray[np.float64]

# Places at which a ranking may be cut; longer ones are cut at so many of theirs, closer at their beginning.
PLACES = 2000


class Interval(NamedTuple):
    """What is known of a number: its bounds and the best estimate."""

    low: float
    estimate: float
    high: float


@dataclass(frozen=True)
class Outlook:
    """What each curve expects of every cut.

    :param places: (P,) how many documents are above each cut, ascending, from 0.
    :param hits: (T, P) how many of them are relevant, by each curve.
    :param totals: (T,) how many of the collection are.
    :param weights: (T,) the curves' probabilities.
    """

    places: NDArray[np.int64]
    hits: Array
    totals: Array
    weights: Array

    def f1(self) -> Array:
        """(T, P) F1 by each curve: 2 hits / (selected + relevant)."""
        return 2 * self.hits / np.maximum(self.places + self.totals[:, None], 1e-12)

    def precision(self) -> Array:
        """(T, P) share of the selected that is relevant; 1 where nothing is selected."""
        return np.where(self.places, self.hits / np.maximum(self.places, 1), 1.0)

    def recall(self) -> Array:
        """(T, P) share of the relevant that is selected; 1 where nothing is relevant."""
        return np.where(self.totals[:, None] > 0, self.hits / np.maximum(self.totals[:, None], 1e-12), 1.0)

    def best(self) -> int:
        """Return how many documents to select for the greatest expected F1."""
        return int(self.places[int((self.weights @ self.f1()).argmax())])

    def most_precise(self, target: float) -> int:
        """Return the most documents of which a share of `target` is expected to be relevant; 0 for none."""
        there = np.flatnonzero(self.weights @ self.precision() >= target)
        return int(self.places[there[-1]])

    def least_complete(self, target: float) -> int:
        """Return the fewest documents that are expected to hold a share of `target` of all relevant ones."""
        there = np.flatnonzero(self.weights @ self.recall() >= target)
        return int(self.places[there[0]]) if len(there) else int(self.places[-1])

    def at(self, count: int) -> int:
        """Return which of the places is the first at or below a number of documents."""
        return min(int(np.searchsorted(self.places, count)), len(self.places) - 1)

    def intervals(self, count: int, confidence: float) -> tuple[Interval, Interval, Interval]:
        """Say what is to be expected of a selection.

        :param count: how many documents are selected.
        :param confidence: the probability of lying within the bounds, in (0, 1).
        :return: precision, recall, and how many documents of the collection are relevant.
        """
        at = self.at(count)
        columns = self.precision()[:, at], self.recall()[:, at], self.totals
        precision, recall, total = (_interval(values, self.weights, confidence) for values in columns)
        return precision, recall, total

    def doubt(self) -> Array:
        """(P - 1,) how unsure it is whether documents between two places belong to the selection.

        Each curve has a best cut of its own; a document that all put on the same side is beyond doubt.
        """
        best = self.f1().argmax(1)
        inside: Array = np.array([self.weights[best > at].sum() for at in range(len(self.places) - 1)])
        return inside * (1 - inside)


def outlook(relevance: Relevance, similarities: Array, certain: Array, rest: Ranking) -> Outlook:
    """Work out what to expect of every cut through a ranking.

    :param relevance: the curves.
    :param similarities: (n,) of the documents in the order of selection; NaN for graded ones.
    :param certain: (n,) the probability that a graded one is relevant; not read for others.
    :param rest: documents further down, that no cut takes in.
    :return: the outlook.
    """
    places = _places(len(similarities))
    open_ones = np.isnan(certain)
    hits = np.zeros((len(relevance.weights), len(places)))
    for at, (start, stop) in enumerate(pairwise(places), 1):
        part, known = open_ones[start:stop], certain[start:stop]
        expected = relevance.each(similarities[start:stop][part]).sum(1) if part.any() else 0.0
        hits[:, at] = hits[:, at - 1] + expected + known[~part].sum()
    tail = relevance.each(rest.similarities) @ rest.weights if len(rest.similarities) else 0.0
    return Outlook(places, hits, hits[:, -1] + tail, relevance.weights)


def _places(count: int) -> NDArray[np.int64]:
    if count <= PLACES:
        return np.arange(count + 1)
    every = np.arange(PLACES // 2 + 1)
    return np.unique(np.r_[every, np.geomspace(every[-1], count, PLACES // 2).round().astype(np.int64)])


def _interval(values: Array, weights: Array, confidence: float) -> Interval:
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order])
    low, high = ((1 - confidence) / 2, (1 + confidence) / 2)
    bounds = [float(values[order[min(int(np.searchsorted(share, at)), len(order) - 1)]]) for at in (low, high)]
    return Interval(bounds[0], float(weights @ values), bounds[1])
