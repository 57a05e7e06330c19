"""The convex problem behind a refinement, solved in as many dimensions as there are documents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# How far the objective may be above its minimum, in nats.
EXCESS = 1e-10
HALVINGS = 30
# From this step on the curvature is that of the student alone.
PLAIN_FROM = 10


@dataclass(frozen=True)
class Minimum:
    """Where the objective is least, for B problems at once.

    :param weights: (B, M) the a of the minimum.
    :param logits: (B, M) the student's z + G a.
    :param iterations: B numbers of Newton steps taken.
    :param converged: for each whether the objective is known to be at its minimum, to 1e-10 nats.
    """

    weights: Tensor
    logits: Tensor
    iterations: list[int]
    converged: list[bool]


def minimise(gram: Tensor, logits: Tensor, target: Tensor, pull: float, max_iterations: int) -> Minimum:
    """Minimise KL(p || softmax(z + G a)) + pull/2 a'Ga over a, by damped Newton.

    For x = q + X'a and G = XX' this is the problem in x, which is strictly convex; at its minimum
    pull * a = p - softmax(z + G a). So a Newton step takes M linear equations, whatever the dimension of x. A step that
    makes the gradient longer is halved. The bound |gradient|^2 / (2 pull) of what is left to gain: Boyd and
    Vandenberghe, Convex Optimization (2004), section 9.1.2.

    What a step needs is the mean curvature along it (Homeier 2004), and where it leads is known beforehand: the student
    at the minimum is its goal, p - pull * a. The curvature of the mean of that and the student takes fewer steps.

    :param gram: (B, M, M) inner products G of the documents, in units of the logits.
    :param logits: (B, M) the student's z before the first step.
    :param target: (B, M) the distributions p.
    :param pull: weight of the quadratic term, above 0.
    :param max_iterations: the most steps.
    :return: the minimum, and how it was found.
    """
    # All vectors are columns here, (B, M, 1).
    target, first = target[:, :, None], logits[:, :, None]
    enough, goal, reached = 2 * pull * EXCESS, target, target
    squares, iterations = [math.inf] * len(target), [0] * len(target)
    for taken in range(max_iterations + 1):
        for _ in range(HALVINGS):
            moved = torch.baddbmm(first, gram, target - reached, alpha=1 / pull)
            student = moved.softmax(1)
            slope = student - reached
            squared = torch.bmm(slope.mT, torch.bmm(gram, slope)).flatten().tolist()
            longer = [now > max(before, enough) for now, before in zip(squared, squares, strict=True)]
            if not any(longer):
                break
            open_at = torch.tensor(longer, device=reached.device)
            reached = torch.where(open_at[:, None, None], (goal + reached) / 2, reached)
        goal, squares = reached, squared
        if taken == max_iterations or max(squares) <= enough:
            break
        iterations = [steps + (now > enough) for steps, now in zip(iterations, squares, strict=True)]
        # Of this mean nobody has proven that it ends; Newton's own curvature does, with the halving.
        twice = student + (goal.clamp_min(0) if taken < PLAIN_FROM else student)
        curvature = twice * gram.sub(torch.bmm(twice.mT, gram), alpha=0.5)
        curvature.diagonal(dim1=-2, dim2=-1).add_(2 * pull)
        reached = goal.add(torch.linalg.solve_ex(curvature, slope)[0], alpha=2 * pull)
    weights = ((target - goal) / pull).squeeze(-1)
    return Minimum(weights, moved.squeeze(-1), iterations, [now <= enough for now in squares])


def held_out(gram: Tensor, minimum: Minimum, pull: float, count: int) -> Tensor:
    """Predict the first documents' logits, each without its own share of the target.

    Laplace's approximation of leaving one out (Rasmussen and Williams, Gaussian Processes for Machine Learning (2006),
    sections 3.4, 5.4.2 and equation 5.12): with curvature w = s(1 - s), noise n = pull / w and c the diagonal of
    (G + N)^-1, the posterior variance is n - n^2 c, and the logit falls back by a (n - n^2 c) / (n c).

    :param gram: (B, M, M) as in `minimise`.
    :param minimum: what that found.
    :param pull: as in `minimise`.
    :param count: how many documents to predict.
    :return: (B, count) logits.
    """
    student = minimum.logits.softmax(-1)
    # Where it is nothing, the division by it would end.
    noise = pull / (student - student.square() + 1e-9)
    factor = torch.linalg.cholesky_ex(gram + noise.diag_embed())[0]
    first = torch.eye(noise.shape[1], count, dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, first, upper=False).square().sum(-2)
    noise, weights = noise[:, :count], minimum.weights[:, :count]
    kept = noise * inverse
    return minimum.logits[:, :count] - weights * (noise - noise * kept) / kept.clamp_min(0.05)


def divergence(target: Tensor, log_student: Tensor) -> Tensor:
    """(..., B) KL(p || s) in nats, from p, (B, M), and the logarithm of s, (..., B, M)."""
    nats: Tensor = (torch.xlogy(target, target) - target * log_student).sum(-1).clamp_min(0)
    return nats
