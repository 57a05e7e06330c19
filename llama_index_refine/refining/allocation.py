"""How the grades are spent: how many in each round, on which documents, and whether more would change the list."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# The gain of a call, as a share of what the list is worth, below which it is not worth it. Chosen on nine collections
# with one to a hundred relevant documents a query; results/early_stop.md has what it keeps.
WORTH = 0.0115


def split_budget(feedback_top_k: int, rounds: int) -> list[int]:
    """Share the documents that may be graded out among the rounds: the first one gets half, the others the rest.

    :param feedback_top_k: the most documents to grade, at least 2.
    :param rounds: the most rounds, at least 1.
    :return: documents to grade in each round, at least 2, since one grade has no other to differ from.
    """
    later = min(rounds, feedback_top_k // 2) - 1
    if not later:
        return [feedback_top_k]
    first = min((feedback_top_k + 1) // 2, feedback_top_k - 2 * later)
    share, rest = divmod(feedback_top_k - first, later)
    return [first, *(share + (at < rest) for at in range(later))]


def expected_gains(
    placed: ArrayLike,
    grades: ArrayLike,
    others: ArrayLike,
    chances: ArrayLike,
    steps: tuple[float, float],
    limit: int,
) -> Array:
    """Say how much the list's discounted cumulative gain (DCG) would grow, could one of the next documents be graded.

    Graded relevant, a document moves up by a step; graded irrelevant, down by another; what it passes moves the other
    way. Nothing is said of what its grade teaches about others.

    :param placed: (K,) where the graded documents stand in the list, their own grades weighed in, in nats.
    :param grades: (K,) in [0, 1].
    :param others: (n,) where the other documents stand, best first.
    :param chances: (n,) how likely each of these is relevant, as `Relevance.probability` says.
    :param steps: nats by which its own grade moves a document up, and down.
    :param limit: how many documents are returned.
    :return: (n,) the growth for each of the others, as a share of the best DCG of documents that are relevant with
        these probabilities.
    """
    rest, likely = np.asarray(others, dtype=np.float64), np.asarray(chances, dtype=np.float64)
    places, relevance = np.r_[np.asarray(placed, dtype=np.float64), rest], np.r_[grades, likely]
    order = np.argsort(-places, kind="stable")
    places, relevance = places[order], relevance[order]
    ranks = np.arange(len(places) + 1)
    discount = np.where(ranks < limit, 1 / np.log2(2 + ranks), 0.0)
    best = np.sort(relevance)[::-1] @ discount[:-1]
    one_place = discount[:-2] - discount[1:-1]
    # What the documents before each place lose by moving down by one, and those up to it gain by moving up.
    lost = np.r_[0.0, np.cumsum(relevance[:-1] * one_place)]
    passed = np.r_[0.0, np.cumsum(relevance[1:] * one_place)]
    here, above, below = (np.searchsorted(-places, -rest - moved) for moved in (0.0, steps[0], -steps[1]))
    last = np.maximum(below - 1, here)
    up, costs, leaves = discount[above] - discount[here], lost[here] - lost[above], passed[last] - passed[here]
    gains: Array = likely * np.maximum(up - costs, 0.0) + (1 - likely) * leaves
    return gains / (best if best > 0 else np.inf)
