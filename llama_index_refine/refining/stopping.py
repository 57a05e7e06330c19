"""Which grades would still change the list that is returned."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# The gain of a call, as a share of what the list is worth, below which it is not worth it. Chosen on nine collections
# with one to a hundred relevant documents a query; results/early_stop.md has what it keeps.
WORTH = 0.0115
# How much the regression's slope is drawn to the student's, 1, and its intercept to the mean grade.
RIDGE = 3.0, 0.1
STEPS, TOLERANCE = 25, 1e-6


def expected_gains(
    placed: ArrayLike,
    fitted: ArrayLike,
    grades: ArrayLike,
    others: ArrayLike,
    next_ones: int,
    steps: tuple[float, float],
    doubt: float,
    limit: int,
) -> Array:
    """Say how much the list's discounted cumulative gain (DCG) would grow, could one of the next documents be graded.

    How likely each is relevant follows from a logistic regression of the grades on where the refined query puts the
    graded documents. Graded relevant, a document moves up by a step; graded irrelevant, down by another; what it passes
    moves the other way. Nothing is said of what its grade teaches about others.

    :param placed: (K,) where the graded documents stand in the list, their own grades weighed in, in nats.
    :param fitted: (K,) where the refined query alone puts them.
    :param grades: (K,) in [0, 1].
    :param others: (n,) where the other documents stand, best first.
    :param next_ones: how many of these, the first ones, might be graded.
    :param steps: nats by which its own grade moves a document up, and down, for a teacher as certain as this one.
    :param doubt: the probability that a grade is wrong, by what the teacher itself says, in [0, 0.5].
    :param limit: how many documents are returned.
    :return: (next_ones,) or fewer, for each of them the growth, as a share of the best DCG of documents that are
        relevant with these probabilities.
    """
    marks, rest = np.asarray(grades, dtype=np.float64), np.asarray(others, dtype=np.float64)
    chances = _relevance(np.asarray(fitted, dtype=np.float64), marks, rest)
    places, relevance = np.r_[np.asarray(placed, dtype=np.float64), rest], np.r_[marks, chances]
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
    for place, chance in zip(rest[:next_ones], chances[:next_ones], strict=False):
        here, above, below = (int((places > place + moved).sum()) for moved in (0.0, steps[0], -steps[1]))
        last = max(below - 1, here)
        # Of its own discount, and of what it passes.
        up, down = discount[above] - discount[here], discount[last] - discount[here]
        costs, leaves = lost[here] - lost[above], passed[last] - passed[here]
        right = chance * max(up - costs, 0.0) + (1 - chance) * leaves
        wrong = chance * (down + leaves) - (1 - chance) * costs
        gains.append((1 - doubt) * right + doubt * wrong)
    return np.array(gains) / best if best > 0 else np.zeros(len(gains))


def _relevance(fitted: Array, grades: Array, places: Array) -> Array:
    """(n,) how likely documents in these places are relevant: ridge logistic regression, by Newton's method."""
    mean = np.clip((grades.sum() + 0.5) / (len(grades) + 1), 0.02, 0.98)
    usual = np.array([1.0, np.log(mean / (1 - mean))])
    centre = fitted.mean()
    rows, ridge = np.stack([fitted - centre, np.ones_like(fitted)], axis=1), np.diag(RIDGE)

    def loss(weights: Array) -> float:
        logits, moved = rows @ weights, weights - usual
        return float(np.logaddexp(0, logits).sum() - grades @ logits + moved @ ridge @ moved / 2)

    weights, least = usual, loss(usual)
    for _ in range(STEPS):
        chance = _logistic(rows @ weights)
        slope = rows.T @ (chance - grades) + ridge @ (weights - usual)
        step = np.linalg.solve(rows.T @ (rows * (chance * (1 - chance))[:, None]) + ridge, slope)
        reached = loss(weights - step)
        while reached > least and np.abs(step).max() > TOLERANCE:
            step = step / 2
            reached = loss(weights - step)
        if np.abs(step).max() <= TOLERANCE:
            break
        weights, least = weights - step, reached
    return _logistic(weights[0] * (places - centre) + weights[1])


def _logistic(values: Array) -> Array:
    curve: Array = 1 / (1 + np.exp(-np.clip(values, -40, 40)))
    return curve
