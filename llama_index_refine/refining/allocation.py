"""How the grades are spent: how many in each round, and on which documents."""

from __future__ import annotations

import torch
from torch import Tensor

# Where later rounds may be saved, what the first one gets of an even share: enough to see which queries it settles.
FIRST_SHARE = 0.75


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


# With a mean grade above this there is plenty that is relevant, and where it ends is worth knowing.
PLENTY = 0.35


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
