"""The refinement of a query vector by graded documents."""

from __future__ import annotations

import numpy as np
import torch

from llama_index_refine.refining.arrays import rows_like, to_numpy
from llama_index_refine.refining.base import BaseRefiner, Problem, Solution
from llama_index_refine.refining.newton import Array, diagonal, held_out, log_softmax, mean, minimise
from llama_index_refine.similarity import Metric

# Without a background a share of the documents' spread stands in for the scatter of the background's similarities.
BANDWIDTH = 0.09
# How much the first ranking counts, in nats for one standard deviation of the background's similarity, for a teacher
# with a signal-to-noise ratio of 1 that finds a third of the documents relevant; how it falls with that ratio, and with
# the mean grade. Flat optima of nDCG@10 and MAP over nine collections with one to a hundred relevant documents a query
# and nine teachers from exact ones to guessers, the same for all.
FIRST_RANKING, OF_SIGNAL, OF_MEAN = 0.25, 0.6, 1.5
USUAL_MEAN = 0.35
LEAST_PRIOR, MOST_PRIOR = 0.12, 1.2
# How much more a yes counts the fewer there are, and the most. Flat from 2 to 3 on the same collections and teachers.
OF_YES, MOST_YES = 2.0, 4.0
# Vectors or similarities that differ by less, as a share of their squared length, are the same in float32.
RESOLUTION = 1e-6
# The least that a float32 tells from zero.
TINY = float(np.finfo(np.float32).tiny)


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
    :param reach: how far the student's logits may move at little cost, in nats.
    :param own_grade: what a document's own grade adds to its place in the final order, in nats from 0.5 to 1, for a
        trust of 1; it falls with the square of the trust. Where few documents are graded relevant, such a grade adds up
        to four times as much.
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
        form, graded = problem.form, problem.form.graded.shape[1]
        start, products = to_numpy(form.scores(form.start)), form.gram()
        means = mean(products)
        squares = mean(diagonal(products)[:, :graded])
        gram = products
        gram -= means[:, None]
        gram -= (means - mean(means)[:, None])[:, :, None]
        spread = np.maximum(mean(diagonal(gram)), RESOLUTION * np.maximum(squares, TINY))  # R^2
        gram /= spread[:, None, None]
        tau = self._tau(start, graded, spread, problem)
        logits = start / tau[:, None] + problem.log_weights
        evidence = problem.trust * problem.grades / self.temperature
        target = np.exp(log_softmax(evidence + logits))
        minimum = minimise(gram, logits, target, 1 / self.reach**2, self.max_iterations)
        after = logits + minimum.push
        weights = minimum.weights * (tau / spread)[:, None]
        vectors = form.start + form.combine(rows_like(weights, form.start))
        unseen = held_out(gram, after, minimum.log_after, target, self.reach**2, graded)
        place = self._place(unseen, (after - problem.log_weights)[:, :graded], problem)
        # Logits leave open a constant; the mean score of all documents at the new vector fixes it.
        moved = (means * weights).sum(-1)
        constant = mean(start) + moved - mean(after - problem.log_weights) * tau
        fused, held = (constant[:, None] + tau[:, None] * logits for logits in (place, unseen))
        return Solution(
            vectors,
            tau,
            target,
            minimum.log_before,
            minimum.log_after,
            fused,
            held,
            minimum.iterations,
            minimum.converged,
        )

    def _place(self, unseen: Array, fitted: Array, problem: Problem) -> Array:
        """Weigh a document's own grade in with what the others say of it.

        The more certain the grade, the less it may put the document below where the refined vector has it, if it is
        relevant, or above, if it is not. A teacher that says yes to a share m of the documents says so wrongly to no
        more than that, so that its yes weighs the more, the smaller m is: log(hits / m) nats at least.

        :param unseen: (B, K) logits that the other documents predict.
        :param fitted: (B, K) logits at the refined vector.
        :param problem: the grades and the trust in them.
        :return: (B, K) logits.
        """
        count = unseen.shape[1]
        grades = problem.grades[:, :count]
        verdict = 2 * grades - 1
        weight = np.where(verdict > 0, rarity(mean(grades))[:, None], 1.0)
        own = unseen + problem.trust[:, :count] ** 2 * self.own_grade * weight * verdict
        kept = own + np.abs(verdict) * (fitted - own)
        return np.where(verdict > 0, np.maximum(own, kept), np.minimum(own, kept))

    def _tau(self, start: Array, graded: int, spread: Array, problem: Problem) -> Array:
        """Return the similarity that counts as one nat, from how the background's similarities scatter."""
        if start.shape[1] - graded < 2:
            scatter = BANDWIDTH * np.sqrt(spread)
        else:
            away = start[:, graded:] - mean(start[:, graded:])[:, None]
            scatter = np.sqrt(np.maximum(mean(away * away), RESOLUTION * spread))
        scatter = np.where(np.isnan(problem.scatter), scatter, problem.scatter)
        tau: Array = scatter / (self.prior or _prior(problem.signal, mean(problem.grades[:, :graded])))
        return tau


def _prior(signal: Array, mean_grade: Array) -> Array:
    """(B,) nats for one standard deviation, from the teacher's signal-to-noise ratio and the mean grade."""
    nats: Array = FIRST_RANKING * signal**-OF_SIGNAL * np.exp(-OF_MEAN * (mean_grade - USUAL_MEAN))
    return nats.clip(LEAST_PRIOR, MOST_PRIOR)


def rarity(mean_grade: Array) -> Array:
    """Say how many times as much a yes counts where yeses are rare.

    :param mean_grade: (B,) mean grades.
    :return: (B,) from 1 to 4.
    """
    times: Array = 1 + OF_YES * np.log(USUAL_MEAN / np.maximum(mean_grade, TINY))
    return times.clip(1, MOST_YES)
