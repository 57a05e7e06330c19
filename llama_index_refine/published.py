"""The procedure of arXiv 2605.12487 as published, for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
        form = problem.form
        rows = torch.cat([form.graded, form.background.expand(len(form.start), *form.background.shape[-2:])], dim=1)
        target = problem.grades.softmax(-1)
        start = form.to_collection(form.start)
        vectors = start.clone().requires_grad_()
        adam = torch.optim.Adam([vectors], lr=self.rate)
        for _ in range(self.steps):
            student = F.cosine_similarity(rows, vectors[:, None], dim=-1).softmax(-1)
            loss = (target * ((target + 1e-8).log() - (student + 1e-8).log())).sum()
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        refined = vectors.detach() / form.scale[:, None]
        ones = torch.ones_like(form.scale)
        return Solution(
            refined,
            ones,
            target,
            F.cosine_similarity(rows, start[:, None], dim=-1).log_softmax(-1),
            F.cosine_similarity(rows, refined[:, None], dim=-1).log_softmax(-1),
            form.scores(refined)[:, : form.graded.shape[1]],
            (ones * self.steps).long(),
            # A fixed number of steps has no test of convergence to pass.
            ones.bool(),
        )
