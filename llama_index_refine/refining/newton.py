"""The convex problem behind a refinement, solved in as many dimensions as there are documents.

In numpy, on the CPU: these systems have some fifty unknowns, and what a solution costs is the number of calls, of which
numpy's are the cheapest, not the arithmetic in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# How far the objective may be above its minimum, in nats.
EXCESS = 1e-10
HALVINGS = 30
# Differences of the objective below this are rounding, and no reason to shorten a step.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Minimum:
    """Where the objective is least, for B problems at once.

    :param weights: (B, M) the a of the minimum.
    :param push: (B, M) G a, by how much the logits have moved.
    :param log_before: (B, M) logarithm of the student's distribution before the first step.
    :param log_after: (B, M) and at the minimum.
    :param iterations: (B,) Newton steps taken.
    :param converged: (B,) whether the objective is known to be at its minimum, to 1e-10 nats.
    """

    weights: Array
    push: Array
    log_before: Array
    log_after: Array
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]


def minimise(gram: Array, logits: Array, target: Array, pull: float, max_iterations: int) -> Minimum:
    """Minimise KL(p || softmax(z + G a)) + pull/2 a'Ga over a, by damped Newton.

    For x = q + X'a and G = XX' this is the problem in x, which is strictly convex; at its minimum
    pull * a = p - softmax(z + G a). So a Newton step takes M linear equations, whatever the dimension of x.
    Newton's method with backtracking, and the bound |gradient|^2 / (2 pull) of what is left to gain: Boyd and
    Vandenberghe, Convex Optimization (2004), sections 9.5 and 9.1.2.

    What a step needs is the mean curvature along it (Homeier 2004), and where it leads is known beforehand: the student
    at the minimum is p - pull * a. The curvature of the mean of that and the student takes fewer steps.

    :param gram: (B, M, M) inner products G of the documents, in units of the logits.
    :param logits: (B, M) the student's z before the first step.
    :param target: (B, M) the distributions p.
    :param pull: weight of the quadratic term, above 0.
    :param max_iterations: the most steps.
    :return: the minimum, and how it was found.
    """
    weights, push = np.zeros_like(logits), np.zeros_like(logits)
    iterations = np.zeros(len(logits), dtype=np.int64)
    log_before = log_student = log_softmax(logits)
    value = -_inner(target, log_student)
    for taken in range(max_iterations + 1):
        student, goal = np.exp(log_student), target - pull * weights
        slope = student - goal
        converged = _inner(slope, (gram @ slope[:, :, None])[:, :, 0]) <= 2 * pull * EXCESS
        if taken == max_iterations or converged.all():
            break
        between = (student + np.maximum(goal, 0)) / 2
        curvature = gram - between[:, None, :] @ gram
        curvature *= between[:, :, None]
        diagonal(curvature)[...] += pull
        step = np.linalg.solve(curvature, slope[:, :, None])
        step_push = (gram @ step)[:, :, 0]
        step = step[:, :, 0]
        for _ in range(HALVINGS):
            moved, moved_push = weights - step, push - step_push
            log_student = log_softmax(logits + moved_push)
            moved_value = pull / 2 * _inner(moved, moved_push) - _inner(target, log_student)
            worse = moved_value > value + ROUNDING
            if not worse.any():
                break
            shorter = np.where(worse, 0.5, 1.0)[:, None]
            step, step_push = shorter * step, shorter * step_push
        iterations += ~converged
        weights, push, value = moved, moved_push, moved_value
    return Minimum(weights, push, log_before, log_student, iterations, converged)


def held_out(gram: Array, logits: Array, log_student: Array, target: Array, variance: float, count: int) -> Array:
    """Predict the first documents' logits, each without its own share of the target.

    Laplace's approximation of leaving one out (Rasmussen and Williams, Gaussian Processes for Machine Learning (2006),
    sections 3.4 and 5.4): with posterior variance v and curvature w = s(1 - s), the logit falls back by
    v (p - s) / (1 - v w).

    :param gram: (B, M, M) as in `minimise`.
    :param logits: (B, M) at the minimum.
    :param log_student: (B, M) their log softmax.
    :param target: (B, M) the distributions p.
    :param variance: prior variance of a logit's move, 1 / pull.
    :param count: how many documents to predict.
    :return: (B, count) logits.
    """
    student = np.exp(log_student)
    curvature = student * (1 - student) + 1e-9
    prior = variance * gram
    columns = prior[:, :, :count]
    noisy = prior.copy()
    diagonal(noisy)[...] += 1 / curvature
    explained = np.einsum("bij,bij->bj", columns, np.linalg.solve(noisy, columns))
    posterior = diagonal(prior)[:, :count] - explained
    kept = np.maximum(1 - posterior * curvature[:, :count], 0.05)
    own_share: Array = posterior / kept * (target - student)[:, :count]
    return logits[:, :count] - own_share


def diagonal(matrices: Array) -> Array:
    """(B, M) a view of the diagonals of (B, M, M)."""
    view: Array = np.einsum("bii->bi", matrices)
    return view


def mean(values: Array) -> Array:
    """(...) means of (..., n), a few times as fast as numpy's where n is small."""
    average: Array = values.sum(-1) / values.shape[-1]
    return average


def log_softmax(logits: Array) -> Array:
    """(B, M) logarithm of the softmax of each row."""
    shifted = logits - logits.max(-1, keepdims=True)
    logarithm: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logarithm


def divergence(target: Array, log_student: Array) -> Array:
    """(..., B) KL(p || s) in nats, from p, (B, M), and the logarithm of s, (..., B, M)."""
    certain = np.log(target, out=np.zeros_like(target), where=target > 0)
    nats: Array = np.maximum((target * (certain - log_student)).sum(-1), 0)
    return nats


def _inner(left: Array, right: Array) -> Array:
    """(B,) inner products of the rows."""
    products: Array = np.einsum("bi,bi->b", left, right)
    return products
