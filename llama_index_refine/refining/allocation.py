"""How the grades are spent: how many in each round, on which documents, and whether more would change the list."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]

# Where later rounds may be saved, what the first one gets of an even share: enough to see which queries it settles.
FIRST_SHARE = 0.75
# With a mean grade above this there is plenty that is relevant, and where it ends is worth knowing.
PLENTY = 0.35
# The gain of a call, as a share of what the list is worth, below which it is not worth it. Chosen on nine collections
# with one to a hundred relevant documents a query; results/early_stop.md has what it keeps.
WORTH = 0.0115


def split_budget(feedback_top_k: int, rounds: int, may_stop: bool = False) -> list[int]:
    """Share the documents that may be graded out among the rounds, as evenly as can be, earlier ones getting the rest.

    :param feedback_top_k: the most documents to grade, at least 2.
    :param rounds: the most rounds, at least 1.
    :param may_stop: whether later rounds may be saved, so that the first one is smaller than the others.
    :return: documents to grade in each round, at least 2, since one grade has no other to differ from.
    """
    rounds = min(rounds, feedback_top_k // 2)
    if may_stop and rounds > 1:
        first = max(2, round(FIRST_SHARE * feedback_top_k / rounds))
        return [first, *split_budget(feedback_top_k - first, rounds - 1)]
    share, rest = divmod(feedback_top_k, rounds)
    return [share + (at < rest) for at in range(rounds)]


def next_to_grade(known: Tensor, grades: Tensor, candidates: Tensor, count: int) -> list[int]:
    """Choose documents evenly from the best down to where the relevant ones seem to end.

    The border lies half way between the mean similarity of what was graded relevant and of what was not. Where nearly
    all were, the choice reaches deep, because one more document of the kind already known to be relevant would teach
    nothing.

    :param known: (M,) similarities of the documents whose grade is known or assumed.
    :param grades: (M,) their grades in [0, 1].
    :param candidates: (n,) similarities of the documents not yet graded, best first.
    :param count: how many to choose.
    :return: their places in `candidates`, ascending, at most `count` and all different.
    """
    count = min(count, len(candidates))
    if count == 0:
        return []
    relevant = (grades * known).sum() / grades.sum().clamp_min(1e-9)
    irrelevant = ((1 - grades) * known).sum() / (1 - grades).sum().clamp_min(1e-9)
    above = int((candidates > (relevant + irrelevant) / 2).sum())
    deepest = min(max(above, count - 1), len(candidates) - 1)
    return [int(place) for place in torch.linspace(0, deepest, count).round()]


def expected_gains(
    placed: ArrayLike,
    grades: ArrayLike,
    others: ArrayLike,
    chances: ArrayLike,
    next_ones: int,
    steps: tuple[float, float],
    doubt: float,
    limit: int,
) -> Array:
    """Say how much the list's discounted cumulative gain (DCG) would grow, could one of the next documents be graded.

    Graded relevant, a document moves up by a step; graded irrelevant, down by another; what it passes moves the other
    way. Nothing is said of what its grade teaches about others.

    :param placed: (K,) where the graded documents stand in the list, their own grades weighed in, in nats.
    :param grades: (K,) in [0, 1].
    :param others: (n,) where the other documents stand, best first.
    :param chances: (n,) how likely each of these is relevant, as `Relevance.probability` says.
    :param next_ones: how many of these, the first ones, might be graded.
    :param steps: nats by which its own grade moves a document up, and down, for a teacher as certain as this one.
    :param doubt: the probability that a grade is wrong, by what the teacher itself says, in [0, 0.5].
    :param limit: how many documents are returned.
    :return: (next_ones,) or fewer, for each of them the growth, as a share of the best DCG of documents that are
        relevant with these probabilities.
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
    gains = []
    for place, chance in zip(rest[:next_ones], likely[:next_ones], strict=False):
        here, above, below = (int((places > place + moved).sum()) for moved in (0.0, steps[0], -steps[1]))
        last = max(below - 1, here)
        # Of its own discount, and of what it passes.
        up, down = discount[above] - discount[here], discount[last] - discount[here]
        costs, leaves = lost[here] - lost[above], passed[last] - passed[here]
        right = chance * max(up - costs, 0.0) + (1 - chance) * leaves
        wrong = chance * (down + leaves) - (1 - chance) * costs
        gains.append((1 - doubt) * right + doubt * wrong)
    return np.array(gains) / best if best > 0 else np.zeros(len(gains))
