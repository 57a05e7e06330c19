"""Shares that people's labels show, with bounds that hold for few labels, some of them of the same query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t  # type: ignore[import-untyped]

from llama_index_refine.selecting.bounds import least_share
from llama_index_refine.selecting.cut import Interval

Array = NDArray[np.float64]

# The level at which few queries are made up for.
LEVEL = 0.975


class Share(NamedTuple):
    """A share, and how many independent labels it is as sure as.

    :param value: in [0, 1], NaN where there is no label.
    :param size: the effective number of labels.
    """

    value: float
    size: float

    def interval(self, risk: float, times: float = 1.0) -> Interval:
        """Bound the share: Clopper and Pearson (1934), each side at half the risk.

        :param risk: the probability that it lies outside, in (0, 1).
        :param times: as if there were so many times the labels.
        :return: low, estimate and high; 0 and 1 where there is no label.
        """
        size, hits = self.size * times, self.value * self.size * times
        if not self.size:
            return Interval(0.0, float("nan"), 1.0)
        high = 1 - least_share(size, size - hits, risk / 2)
        return Interval(least_share(size, hits, risk / 2), self.value, high)


def share(values: ArrayLike, queries: Sequence[str], weights: ArrayLike | None = None) -> Share:
    """Take the mean of labels.

    :param values: (n,) 0 or 1.
    :param queries: (n,) of which query each is.
    :param weights: (n,) above 0; None for equal ones.
    :return: the share.
    """
    each = np.asarray(values, dtype=np.float64)
    if not len(each):
        return Share(float("nan"), 0.0)
    shares = np.ones(len(each)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    mean = float(shares @ each)
    return Share(mean, effective(mean, shares * (each - mean), queries, float(1 / (shares @ shares))))


def effective(mean: float, influence: Array, queries: Sequence[str], most: float) -> float:
    """Say how many independent labels tell as much: fewer, where those of one query hang together.

    Korn and Graubard (1998): the variance between queries decides, with Student's t for few queries.

    :param mean: the share.
    :param influence: (n,) how far each label moves it.
    :param queries: (n,) of which query each label is.
    :param most: how many there are.
    """
    names = {query: at for at, query in enumerate(dict.fromkeys(queries))}
    spread = float(mean * (1 - mean))
    sums = np.bincount([names[query] for query in queries], influence)
    variance = len(names) / max(len(names) - 1, 1) * float(sums @ sums)
    if len(names) < 2 or spread < 1e-12 or variance < 1e-12:
        return most
    few = t.ppf(LEVEL, len(influence) - 1) / t.ppf(LEVEL, len(names) - 1)
    return float(np.clip(spread / variance * few**2, min(1.0, most), most))


def area(grades: ArrayLike, relevant: ArrayLike, queries: Sequence[str], weights: ArrayLike) -> Share:
    """Measure the area under the ROC curve: how often a relevant node has the higher grade of two.

    Its variance between queries is that of Obuchowski (1997), from each label's own share in it.

    :param grades: (n,)
    :param relevant: (n,) what people say.
    :param queries: (n,) of which query each is.
    :param weights: (n,) above 0.
    :return: the area; it is never surer than the rarer kind of label allows.
    """
    values, people, mass = (np.asarray(one, dtype=np.float64) for one in (grades, relevant, weights))
    yes, no = np.flatnonzero(people > 0), np.flatnonzero(people == 0)
    if not len(yes) or not len(no):
        return Share(float("nan"), 0.0)
    upper, lower = mass[yes] / mass[yes].sum(), mass[no] / mass[no].sum()
    wins = (values[yes, None] > values[no]) + 0.5 * (values[yes, None] == values[no])
    mean = float(upper @ wins @ lower)
    influence = np.zeros(len(values))
    influence[yes], influence[no] = upper * (wins @ lower - mean), lower * (upper @ wins - mean)
    most = float(min(1 / (upper @ upper), 1 / (lower @ lower)))
    return Share(mean, effective(min(max(mean, 0.0), 1.0), influence, queries, most))
