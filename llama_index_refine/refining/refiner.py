"""The refinement of a query vector by graded documents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llama_index_refine.refining.base import BaseRefiner, Solution
from llama_index_refine.refining.newton import held_out, minimise
from llama_index_refine.refining.problem import Problem
from llama_index_refine.similarity import Metric

# Without a background a share of the documents' spread stands in for the scatter of the background's similarities.
BANDWIDTH = 0.09
# How much the first ranking counts, in nats for one standard deviation of the background's similarity, for a teacher
# with a signal-to-noise ratio of 1 that finds a third of the documents relevant; how it falls with that ratio, and with
# the mean grade. Less is better with a teacher that knows something, more with a guesser: results/constants.md.
FIRST_RANKING, OF_SIGNAL, OF_MEAN = 0.25, 0.6, 1.5
USUAL_MEAN = 0.35
# Whatever the grades are, the first ranking keeps some weight, and gets no more than so much.
LEAST_PRIOR, MOST_PRIOR = 0.12, 1.2
# How much more a yes counts the fewer there are, and the most.
OF_YES, MOST_YES = 2.0, 4.0
# Vectors or similarities that differ by less, as a share of their squared length, are the same in float32.
RESOLUTION = 1e-6
# The least that a float32 tells from zero.
TINY = torch.finfo(torch.float32).tiny


class QueryRefiner(BaseRefiner):
    """Moves a query vector until the embedding space agrees with the grades.

    With the student s_i = x.d_i the refined vector x minimises

        KL(p || softmax(log w + X x / tau)) + R^2 |x - q|^2 / (2 (reach tau)^2)

    with the target p ~ w exp(trust g / temperature + X q / tau), over the graded documents, w = 1, and the background,
    g = 0 and w = sqrt(population) / N, or 1 where the population is not known. R is the documents' root mean square
    distance from their mean. The KL divergence between teacher and student is that of arXiv 2605.12487; target, scale
    and quadratic term make the result independent of the vectors' scale, and unique.

    :param metric: the collection's distance: cosine, dot or euclid.
    :param temperature: how much a grade counts: grades 0 and 1 differ by 1 / temperature nats in the target.
    :param prior: how much the first ranking counts: nats for one standard deviation of the background's similarity.
        None lets it follow from the grades: the better the vectors explain this teacher's grades, and the more of the
        documents are relevant, the less it counts.
    :param reach: how far the student's logits may move at low cost, in nats.
    :param own_grade: what a document's own grade adds to its place in the final order, in nats from 0.5 to 1, for a
        trust and a certainty of 1; it falls with the square of the trust. Where few documents are graded relevant, such
        a grade adds up to four times as much.
    :param max_iterations: the most Newton steps.
    :param device: where to compute; None for where the query is.
    :raises ValueError: an argument outside its range.
    """

    def __init__(
        self,
        metric: Metric = "cosine",
        temperature: float = 0.3,
        prior: float | None = None,
        reach: float = 5.0,
        own_grade: float = 1.1,
        max_iterations: int = 50,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(metric, device)
        for name, value in (("temperature", temperature), ("prior", prior), ("reach", reach)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not own_grade >= 0:
            raise ValueError(f"own_grade must be at least 0, got {own_grade}")
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
        self.temperature = temperature
        self.prior = prior
        self.reach = reach
        self.own_grade = own_grade
        self.max_iterations = max_iterations

    @classmethod
    def paper(cls, steps: int = 100, rate: float = 1e-4, device: str | torch.device | None = None) -> BaseRefiner:
        """Return the procedure as published, for comparison.

        :param steps: Adam steps.
        :param rate: Adam's learning rate.
        :param device: where to compute; None for where the query is.
        :return: a refiner with the same methods.
        """
        from llama_index_refine.refining.published import PublishedRefiner

        return PublishedRefiner(steps, rate, device)

    def _solve(self, problem: Problem) -> Solution:
        graded, pull = problem.grades.shape[1], 1 / self.reach**2
        kernel, start = problem.kernel[:, :-1, :-1], problem.start
        # What all documents have in common changes no softmax.
        gram = kernel - kernel.mean(-1, keepdim=True)
        gram -= gram.mean(-2, keepdim=True)
        squares, spread = (each.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) for each in (kernel, gram))
        spread = spread.maximum(RESOLUTION * squares.clamp_min(TINY))  # R^2
        gram /= spread[:, None]
        means = problem.grades.mean(-1).tolist()
        tau = self._temperature(problem, spread, means)
        logits = start / tau + problem.log_weights
        target = logits.clone()
        target[:, :graded].addcmul_(problem.trust, problem.grades, value=1 / self.temperature)
        target = target.softmax(-1)
        minimum = minimise(gram, logits, target, pull, self.max_iterations)
        fitted, unseen = minimum.logits[:, :graded], held_out(gram, minimum, pull, graded)
        place = self._place(unseen, fitted, problem, tau.new_tensor([[rarity(mean)] for mean in means]))
        weights = minimum.weights * (tau / spread)
        vectors = problem.moved(weights)
        scores = torch.baddbmm(start[:, :graded, None], kernel[:, :graded], weights[:, :, None]).squeeze(-1)
        unit, rest = problem.scale(vectors)
        near, tau = unit * scores + rest, unit * tau
        return Solution(
            vectors,
            tau.squeeze(-1),
            target,
            torch.stack([logits, minimum.logits]).log_softmax(-1),
            near.addcmul(tau, place - fitted),
            near.addcmul(tau, unseen - fitted),
            minimum.iterations,
            minimum.converged,
        )

    def _place(self, unseen: Tensor, fitted: Tensor, problem: Problem, rare: Tensor) -> Tensor:
        """Weigh a document's own grade in with what the others say of it.

        The more certain the grade, the less it may put the document below where the refined vector has it, if it is
        relevant, or above, if it is not. A teacher that says yes to a share m of the documents says so wrongly to no
        more than that, so that its yes weighs the more, the smaller m is: log(hits / m) nats at least.

        :param unseen: (B, K) logits that the other documents predict.
        :param fitted: (B, K) logits at the refined vector.
        :param problem: the grades and the trust in them.
        :param rare: (B, 1) how many times as much a yes counts.
        :return: (B, K) logits.
        """
        verdict = 2 * problem.grades - 1
        push = self.own_grade * problem.trust.square() * problem.certainty * verdict
        own = unseen + push.maximum(rare * push)
        return own.addcmul(verdict, ((fitted - own) * verdict.sign()).clamp_min(0))

    def _temperature(self, problem: Problem, spread: Tensor, means: list[float]) -> Tensor:
        """(B, 1) tau, the score that counts as one nat: how scores scatter over the collection, over the prior."""
        background = problem.start[:, problem.grades.shape[1] :]
        if problem.scatter is not None:
            scatter = problem.scatter / problem.scale(problem.query)[0]
        elif background.shape[1] < 2:
            scatter = BANDWIDTH * spread.sqrt()
        else:
            scatter = background.var(-1, correction=0, keepdim=True).maximum(RESOLUTION * spread).sqrt()
        priors = []
        for signal, mean in zip(problem.signal, means, strict=True):
            nats = FIRST_RANKING * signal**-OF_SIGNAL * math.exp(OF_MEAN * (USUAL_MEAN - mean))
            priors.append([self.prior or min(max(nats, LEAST_PRIOR), MOST_PRIOR)])
        return scatter / scatter.new_tensor(priors)


def rarity(mean_grade: float) -> float:
    """Say how many times as much a yes counts where yeses are rare.

    :param mean_grade: the mean grade, in [0, 1].
    :return: from 1 to 4.
    """
    times = 1 + OF_YES * math.log(USUAL_MEAN / max(mean_grade, TINY))
    return min(max(times, 1.0), MOST_YES)
