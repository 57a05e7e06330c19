"""The procedure of arXiv 2605.12487 as published, for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llama_index_refine.refining.base import BaseRefiner, Solution
from llama_index_refine.refining.problem import Problem


class PublishedRefiner(BaseRefiner):
    """Adam on the query vector, minimising KL(softmax(grades) || softmax(cosines)), without temperature.

    :param steps: Adam steps, at least 1.
    :param rate: Adam's learning rate, above 0.
    :param device: where to compute; None for where the query is.
    :raises ValueError: an argument outside its range.
    """

    wants_background = False
    takes_matrices = False

    def __init__(self, steps: int = 100, rate: float = 1e-4, device: str | torch.device | None = None) -> None:
        super().__init__(metric="cosine", device=device)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not rate > 0:
            raise ValueError(f"rate must be above 0, got {rate}")
        self.steps = steps
        self.rate = rate

    @torch.inference_mode(False)
    def _solve(self, problem: Problem) -> Solution:
        # Autograd takes no tensors of the inference mode but copies of them.
        rows, start = problem.rows[:, :-1].clone(), problem.rows[:, -1].clone()
        graded = problem.grades.shape[1]
        target = F.pad(problem.grades.to(rows), (0, rows.shape[1] - graded)).softmax(-1)
        vectors = start.clone().requires_grad_()
        adam = torch.optim.Adam([vectors], lr=self.rate)
        for _ in range(self.steps):
            student = F.cosine_similarity(rows, vectors[:, None], dim=-1).softmax(-1)
            loss = (target * ((target + 1e-8).log() - (student + 1e-8).log())).sum()
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        refined = vectors.detach()
        before, after = (F.cosine_similarity(rows, x[:, None], dim=-1) for x in (start, refined))
        scores, one = after[:, :graded], rows.new_ones(len(rows))
        students = torch.stack([before, after]).log_softmax(-1)
        # A fixed number of steps has no test of convergence to pass.
        steps, converged = [self.steps] * len(rows), [True] * len(rows)
        return Solution(refined, one, target, students, scores, scores, steps, converged)
