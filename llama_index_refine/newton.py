"""The convex problem behind a refinement, solved in as many dimensions as there are documents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Half the squared Newton decrement bounds how far the objective is above its minimum, in nats. Convergence is
# quadratic, so the step that was taken last leaves an error of about the square of this.
DECREMENT = 1e-8
ARMIJO = 1e-4
HALVINGS = 30


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
    weights = torch.zeros_like(logits)
    push = torch.zeros_like(logits)  # G a
    ridge = pull * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    iterations = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    converged = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    value, student = _objective(logits, target, weights, push, pull)
    for _ in range(max_iterations):
        slope = torch.add(student - target, weights, alpha=pull)
        mean_row = student[:, None, :] @ gram
        step = -torch.linalg.solve(student[:, :, None] * (gram - mean_row) + ridge, slope)
        step_push = (gram @ step[:, :, None])[:, :, 0]
        decrement = -(slope * step_push).sum(-1)
        size = torch.ones_like(decrement)
        for _ in range(HALVINGS):
            moved, moved_push = weights + size[:, None] * step, push + size[:, None] * step_push
            moved_value, student = _objective(logits + moved_push, target, moved, moved_push, pull)
            worse = moved_value > value - ARMIJO * size * decrement + 1e-12
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        iterations += ~converged
        weights, push, value = moved, moved_push, moved_value
        converged = decrement <= 2 * DECREMENT
        if converged.all():
            break
    return Minimum(weights, push, iterations, converged)


def _objective(logits: Tensor, target: Tensor, weights: Tensor, push: Tensor, pull: float) -> tuple[Tensor, Tensor]:
    """Return the objective less the target's own entropy, which no step changes, and the student's distribution."""
    log_student = logits.log_softmax(-1)
    value = (weights * push).sum(-1) * (pull / 2) - (target * log_student).sum(-1)
    return value, log_student.exp()


def held_out(gram: Tensor, logits: Tensor, target: Tensor, variance: float) -> Tensor:
    """Predict each document's logit without its own share of the target.

    Laplace's approximation of leaving one out (Rasmussen and Williams, Gaussian Processes for Machine Learning (2006),
    sections 3.4 and 5.4): with posterior variance v and curvature w = s(1 - s), the logit falls back by
    v (p - s) / (1 - v w).

    :param gram: (B, M, M) as in `minimise`.
    :param logits: (B, M) at the minimum.
    :param target: (B, M) the distributions p.
    :param variance: prior variance of a logit's move, 1 / pull.
    :return: (B, M) logits.
    """
    student = logits.softmax(-1)
    curvature = student * (1 - student) + 1e-9
    prior = variance * gram
    noisy = prior + torch.diag_embed(curvature.reciprocal())
    posterior = (prior - prior @ torch.linalg.solve(noisy, prior)).diagonal(dim1=1, dim2=2)
    own_share: Tensor = posterior / (1 - posterior * curvature).clamp_min(0.05) * (target - student)
    return logits - own_share
