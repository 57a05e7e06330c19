"""The convex problem behind a refinement, solved in as many dimensions as there are documents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    :param log_after: (B, M) logarithm of the student's distribution at the minimum.
    :param iterations: (B,) Newton steps taken.
    :param converged: (B,) whether the objective is known to be at its minimum, to 1e-10 nats.
    """

    weights: Tensor
    push: Tensor
    log_after: Tensor
    iterations: Tensor
    converged: Tensor


def minimise(gram: Tensor, logits: Tensor, target: Tensor, pull: float, max_iterations: int) -> Minimum:
    """Minimise KL(p || softmax(z + G a)) + pull/2 a'Ga over a, by damped Newton.

    For x = q + X'a and G = XX' this is the problem in x, which is strictly convex; at its minimum
    pull * a = p - softmax(z + G a). So a Newton step takes M linear equations, whatever the dimension of x.
    Newton's method with backtracking, and the bound |gradient|^2 / (2 pull) of what is left to gain: Boyd and
    Vandenberghe, Convex Optimization (2004), sections 9.5 and 9.1.2.

    With g = p - pull * a, the student that a is right for, the minimum is where the student is g. A step needs the mean
    curvature along it (Homeier 2004), and where it leads is known beforehand: to g. The curvature of the mean of g and
    the student, c, takes fewer steps. With s = c^(1/2), S = diag(s), r = student - g and LL' = S G S + pull, the step
    is to g = student - S L'^-1 P L^-1 S G r, where P takes out the direction L^-1 s, as softmax knows no constant.

    :param gram: (B, M, M) inner products G of the documents, in units of the logits.
    :param logits: (B, M) the student's z before the first step.
    :param target: (B, M) the distributions p.
    :param pull: weight of the quadratic term, above 0.
    :param max_iterations: the most steps.
    :return: the minimum, and how it was found.
    """
    # All vectors are columns here, (B, M, 1).
    target, first = target[:, :, None], logits[:, :, None]
    wanted, goal, moved = target.mT, target, first
    iterations = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    log_student = moved.log_softmax(1)
    value = -torch.bmm(wanted, log_student)
    for taken in range(max_iterations + 1):
        student = log_student.exp()
        slope = student - goal
        push = torch.bmm(gram, slope)
        excess = (slope * push).sum(1)
        if taken == max_iterations or float(excess.max()) <= 2 * pull * EXCESS:
            break
        iterations += (excess > 2 * pull * EXCESS)[:, 0]
        root = (student + goal.clamp_min(0)).sqrt()
        across = root.mT
        system = gram * (root * across)
        system.diagonal(dim1=-2, dim2=-1).add_(2 * pull)
        sides = torch.cat([root * push, root], dim=-1)
        solved = torch.cholesky_solve(sides, torch.linalg.cholesky_ex(system)[0])
        shares = torch.bmm(across, solved)
        back = solved[:, :, :1].addcmul(shares[:, :, :1] / shares[:, :, 1:], solved[:, :, 1:], value=-1)
        reached = student.addcmul(root, back, value=-1)
        for _ in range(HALVINGS):
            weights = target - reached
            moved = torch.baddbmm(first, gram, weights, alpha=1 / pull)
            log_student = moved.log_softmax(1)
            costs = torch.bmm(wanted, log_student)
            rise = torch.baddbmm(costs, weights.mT, moved - first, beta=-1, alpha=0.5) - value
            if float(rise.max()) <= ROUNDING:
                break
            reached = torch.where(rise > ROUNDING, (goal + reached) / 2, reached)
        goal, value = reached, value + rise
    weights, push = (target - goal) / pull, moved - first
    converged = (excess <= 2 * pull * EXCESS)[:, 0]
    return Minimum(weights.squeeze(-1), push.squeeze(-1), log_student.squeeze(-1), iterations, converged)


def held_out(gram: Tensor, logits: Tensor, log_student: Tensor, target: Tensor, variance: float, count: int) -> Tensor:
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
    student = log_student.exp()
    curvature = student * (1 - student) + 1e-9
    noisy = variance * gram
    columns = noisy[:, :, :count].clone()
    prior = noisy.diagonal(dim1=-2, dim2=-1)[:, :count].clone()
    noisy.diagonal(dim1=-2, dim2=-1).add_(1 / curvature)
    factor = torch.linalg.cholesky_ex(noisy).L
    explained = torch.linalg.solve_triangular(factor, columns, upper=False).square().sum(-2)
    posterior = prior - explained
    kept = (1 - posterior * curvature[:, :count]).clamp_min(0.05)
    return logits[:, :count] - posterior / kept * (target - student)[:, :count]


def divergence(target: Tensor, log_student: Tensor) -> Tensor:
    """(..., B) KL(p || s) in nats, from p, (B, M), and the logarithm of s, (..., B, M)."""
    nats: Tensor = (torch.xlogy(target, target) - target * log_student).sum(-1).clamp_min(0)
    return nats
