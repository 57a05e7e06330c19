"""The procedure of arXiv 2605.12487 as published, for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llama_index_refine.refiner import Problem, QueryRefiner, Solution


class PublishedRefiner(QueryRefiner):
    """Adam on the query vector, minimising KL(softmax(grades) || softmax(cosines)), without temperature.

    :param steps: Adam steps, at least 1.
    :param rate: Adam's learning rate, above 0.
    :param device: where to compute; None for where the query is.
    :raises ValueError: an argument outside its range.
    """

    wants_background = False

    def __init__(self, steps: int = 100, rate: float = 1e-4, device: str | torch.device | None = None) -> None:
        super().__init__(metric="cosine", device=device)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if not rate > 0:
            raise ValueError(f"rate must be above 0, got {rate}")
        self.steps = steps
        self.rate = rate

    def _solve(self, problem: Problem) -> Solution:
        start = problem.form.to_collection(problem.form.start)
        target = problem.grades.softmax(-1)
        vectors = start.clone().requires_grad_()
        adam = torch.optim.Adam([vectors], lr=self.rate)
        for _ in range(self.steps):
            student = F.cosine_similarity(problem.form.rows, vectors[:, None], dim=-1).softmax(-1)
            loss = (target * ((target + 1e-8).log() - (student + 1e-8).log())).sum()
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        ones = torch.ones_like(start[:, 0])
        step = (vectors.detach() - start) / problem.form.scale[:, None]
        # A fixed number of steps has no test of convergence to pass.
        return Solution(step, ones, target, (ones * self.steps).long(), ones.bool())

    def _log_student(self, problem: Problem, vectors: Tensor, tau: Tensor) -> Tensor:
        return F.cosine_similarity(problem.form.rows, vectors[:, None], dim=-1).log_softmax(-1)
