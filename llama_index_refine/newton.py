"""The convex problem behind a refinement, solved in as many dimensions as there are documents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot

# Half the squared Newton decrement bounds how far the objective is above its minimum, in nats. Convergence is
# quadratic, so the step that was taken last leaves an error of about the square of this.
DECREMENT = 1e-6
HALVINGS = 30
# Differences of the objective below this are rounding, and no reason to shorten a step.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Minimum:
    """Where the objective is least, for B problems at once.

    :param weights: (B, M) the a of the minimum.
    :param push: (B, M) G a, by how much the logits have moved.
    :param iterations: (B,) Newton steps taken.
    :param converged: (B,) whether the decrement fell below its tolerance.
    """

    weights: Tensor
    push: Tensor
    iterations: Tensor
    converged: Tensor


def minimise(gram: Tensor, logits: Tensor, target: Tensor, pull: float, max_iterations: int) -> Minimum:
    """Minimise KL(p || softmax(z + G a)) + pull/2 a'Ga over a, by damped Newton.

    For x = q + X'a and G = XX' this is the problem in x, which is strictly convex; at its minimum
    pull * a = p - softmax(z + G a). So a Newton step takes M linear equations, whatever the dimension of x.
    Newton's method with backtracking: Boyd and Vandenberghe, Convex Optimization (2004), section 9.5.

    :param gram: (B, M, M) inner products G of the documents, in units of the logits.
    :param logits: (B, M) the student's z before the first step.
    :param target: (B, M) the distributions p.
    :param pull: weight of the quadratic term, above 0.
    :param max_iterations: the most steps.
    :return: the minimum, and how it was found.
    """
    logits, target = logits[:, :, None], target[:, :, None]
    weights, push = torch.zeros_like(logits), torch.zeros_like(logits)  # a and G a, as columns
    ridge = pull * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    iterations = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    converged = torch.zeros_like(iterations, dtype=torch.bool)
    value, student = _objective(logits, target, weights, push, pull)
    for _ in range(max_iterations):
        slope = torch.add(student - target, weights, alpha=pull)
        step = torch.linalg.solve(torch.addcmul(ridge, student, gram - student.mT @ gram), slope)
        step_push = gram @ step
        size: Tensor | float = 1.0
        for _ in range(HALVINGS):
            moved, moved_push = weights - size * step, push - size * step_push
            moved_value, student = _objective(logits + moved_push, target, moved, moved_push, pull)
            worse = moved_value > value + ROUNDING
            if not worse.any():
                break
            size = torch.where(worse[:, :, None], size / 2, size * torch.ones_like(step[:, :1]))
        iterations += ~converged
        weights, push, value = moved, moved_push, moved_value
        converged = vecdot(slope, step_push, dim=1)[:, 0] <= 2 * DECREMENT
        if converged.all():
            break
    return Minimum(weights[:, :, 0], push[:, :, 0], iterations, converged)


def _objective(logits: Tensor, target: Tensor, weights: Tensor, push: Tensor, pull: float) -> tuple[Tensor, Tensor]:
    """Return the objective less the target's own entropy, (B, 1), which no step changes, and the student, (B, M, 1)."""
    log_student = logits.log_softmax(1)
    value = torch.sub(vecdot(weights, push, dim=1) * (pull / 2), vecdot(target, log_student, dim=1))
    return value, log_student.exp()


def held_out(gram: Tensor, logits: Tensor, target: Tensor, variance: float, count: int) -> Tensor:
    """Predict the first documents' logits, each without its own share of the target.

    Laplace's approximation of leaving one out (Rasmussen and Williams, Gaussian Processes for Machine Learning (2006),
    sections 3.4 and 5.4): with posterior variance v and curvature w = s(1 - s), the logit falls back by
    v (p - s) / (1 - v w).

    :param gram: (B, M, M) as in `minimise`.
    :param logits: (B, M) at the minimum.
    :param target: (B, M) the distributions p.
    :param variance: prior variance of a logit's move, 1 / pull.
    :param count: how many documents to predict.
    :return: (B, count) logits.
    """
    student = logits.softmax(-1)
    curvature = student * (1 - student) + 1e-9
    prior = variance * gram
    columns = prior[:, :, :count]
    noisy = prior.clone()
    noisy.diagonal(dim1=1, dim2=2).add_(curvature.reciprocal())
    explained = columns * torch.linalg.solve(noisy, columns)
    posterior = prior.diagonal(dim1=1, dim2=2)[:, :count] - explained.sum(1)
    kept = (1 - posterior * curvature[:, :count]).clamp_min(0.05)
    own_share: Tensor = posterior / kept * (target - student)[:, :count]
    return logits[:, :count] - own_share
