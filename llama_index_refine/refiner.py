"""The refinement of a query vector by graded documents."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_index_refine.arrays import like, to_numpy, to_tensor
from llama_index_refine.geometry import METRICS, Metric, Normal, normal_form
from llama_index_refine.newton import Array, divergence, held_out, log_softmax, minimise
from llama_index_refine.refinement import Refinement

# Without a background the spread of the documents stands in for the scatter of their similarities.
BANDWIDTH = 0.6
# Vectors or similarities that differ by less, as a share of their squared length, are the same in float32.
RESOLUTION = 1e-6
# The least that a float32 tells from zero.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Problem:
    """B refinements in normal form. The graded documents come first, the background after them: M = K + N.

    :param form: queries and documents.
    :param grades: (B, M), 0 for the background.
    :param trust: (B,) in [0, 1].
    :param log_weights: (M,) how many documents each one stands for, as a logarithm.
    """

    form: Normal
    grades: Array
    trust: Array
    log_weights: Array


@dataclass(frozen=True)
class Solution:
    """Where the queries should go.

    :param vectors: (B, d) in normal form.
    :param tau: (B,) the student's temperature in normal form.
    :param target: (B, M) the distribution the student was drawn to.
    :param log_before: (B, M) logarithm of the student's distribution before.
    :param log_after: (B, M) and after.
    :param fused: (B, K) scores of the graded documents in normal form, with their own grade weighed in.
    :param iterations: (B,)
    :param converged: (B,)
    """

    vectors: Tensor
    tau: Array
    target: Array
    log_before: Array
    log_after: Array
    fused: Array
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]


class QueryRefiner:
    """Moves a query vector until the embedding space agrees with the grades.

    With the student s_i = x.d_i the refined vector x minimises

        KL(p || softmax(log w + X x / tau)) + R^2 |x - q|^2 / (2 (reach tau)^2)

    with the target p ~ w exp(trust g / temperature + X q / tau), over the graded documents, w = 1, and the background,
    g = 0 and w = sqrt(population) / N, or 1 where the population is not known. R is the documents' root mean square
    distance from their mean. The KL divergence between teacher and student is that of arXiv 2605.12487; target, scale
    and quadratic term make the result independent of the vectors' scale, and unique.

    :param metric: the collection's distance: cosine, dot or euclid.
    :param temperature: how much a grade counts: grades 0 and 1 differ by 1 / temperature nats in the target.
    :param prior: how much the embedding counts: nats for one standard deviation of the background's similarity.
    :param reach: how far the student's logits may move at little cost, in nats.
    :param own_grade: what a document's own grade adds to its place in the final order, in nats from 0.5 to 1.
    :param max_iterations: the most Newton steps.
    :param device: where to compute; None for where the query is.
    :raises ValueError: an argument outside its range.
    """

    wants_background = True

    def __init__(
        self,
        metric: Metric = "cosine",
        temperature: float = 0.3,
        prior: float = 0.15,
        reach: float = 5.0,
        own_grade: float = 1.0,
        max_iterations: int = 50,
        device: str | torch.device | None = None,
    ) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
        for name, value in (("temperature", temperature), ("prior", prior), ("reach", reach)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not own_grade >= 0:
            raise ValueError(f"own_grade must be at least 0, got {own_grade}")
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
        self.metric: Metric = metric
        self.temperature = temperature
        self.prior = prior
        self.reach = reach
        self.own_grade = own_grade
        self.max_iterations = max_iterations
        self.device = device

    @classmethod
    def paper(cls, steps: int = 100, rate: float = 1e-4, device: str | torch.device | None = None) -> QueryRefiner:
        """Return the procedure as published, for comparison.

        :param steps: Adam steps.
        :param rate: Adam's learning rate.
        :param device: where to compute; None for where the query is.
        :return: a refiner with the same methods.
        """
        from llama_index_refine.published import PublishedRefiner

        return PublishedRefiner(steps, rate, device)

    def refine(
        self,
        query: Any,
        documents: Any,
        grades: Any,
        background: Any = None,
        *,
        population: int | None = None,
        trust: float = 1.0,
    ) -> Refinement:
        """Refine one query vector.

        :param query: (d,) numpy array or torch tensor.
        :param documents: (K, d) vectors of the graded documents, K at least 2.
        :param grades: (K,) in [0, 1].
        :param background: (N, d) vectors of documents taken as irrelevant, N at least 1; None for none.
        :param population: how many documents the background stands for; None where each is only itself.
        :param trust: how far the grades are believed, in [0, 1]; at 0 nothing moves.
        :return: the refinement.
        :raises ValueError: naming the argument and what is wrong with it.
        """
        queries = to_tensor("query", query, (None,), self.device)[None]
        rows = to_tensor("documents", documents, (None, queries.shape[1]), queries.device)[None]
        marks = to_tensor("grades", grades, (rows.shape[1],), queries.device)[None]
        extra = None
        if background is not None:
            extra = to_tensor("background", background, (None, queries.shape[1]), queries.device)
        share = to_tensor("trust", [trust], (1,), queries.device)
        (refinement,) = self._refine(query, queries, rows, marks, extra, population, share)
        return refinement

    def refine_batch(
        self,
        queries: Any,
        documents: Any,
        grades: Any,
        background: Any = None,
        *,
        population: int | None = None,
        trust: Any = None,
    ) -> list[Refinement]:
        """Refine many query vectors at once.

        :param queries: (B, d).
        :param documents: (B, K, d).
        :param grades: (B, K) in [0, 1].
        :param background: (N, d), the same for all queries, or (B, N, d); None for none.
        :param population: how many documents the background stands for; None where each is only itself.
        :param trust: (B,) how far the grades are believed, in [0, 1]; None for 1.
        :return: one refinement per query.
        :raises ValueError: naming the argument and what is wrong with it.
        """
        many = to_tensor("queries", queries, (None, None), self.device)
        batch, size = many.shape
        rows = to_tensor("documents", documents, (batch, None, size), many.device)
        marks = to_tensor("grades", grades, (batch, rows.shape[1]), many.device)
        extra = None
        if background is not None:
            shape = (None, size) if getattr(background, "ndim", 2) == 2 else (batch, None, size)
            extra = to_tensor("background", background, shape, many.device)
        share = torch.ones_like(many[:, 0]) if trust is None else to_tensor("trust", trust, (batch,), many.device)
        return self._refine(queries, many, rows, marks, extra, population, share)

    def _refine(
        self,
        example: Any,
        queries: Tensor,
        documents: Tensor,
        grades: Tensor,
        background: Tensor | None,
        population: int | None,
        trust: Tensor,
    ) -> list[Refinement]:
        began = time.perf_counter()
        _check(documents, grades, background, population, trust)
        if background is None:
            background = documents.new_zeros(0, documents.shape[-1])
        graded, size = documents.shape[1], background.shape[-2]
        log_weights = np.zeros(graded + size)
        if size and population is not None:
            log_weights[graded:] = math.log(math.sqrt(max(population, size)) / size)
        form = normal_form(queries, documents, background, self.metric)
        marks = np.zeros((len(queries), graded + size))
        marks[:, :graded] = to_numpy(grades)
        solution = self._solve(Problem(form, marks, to_numpy(trust), log_weights))
        vectors = form.to_collection(solution.vectors)
        fused = form.similarity(torch.from_numpy(solution.fused).to(vectors), solution.vectors)
        tau = solution.tau * to_numpy(form.unit(solution.vectors))
        before, after = np.exp(solution.log_before), np.exp(solution.log_after)
        kl_before, kl_after = (
            divergence(solution.target, log_student) for log_student in (solution.log_before, solution.log_after)
        )
        seconds = time.perf_counter() - began
        return [
            Refinement(
                query=like(queries[at], example),
                vector=like(vectors[at], example),
                documents=like(documents[at], example),
                grades=like(grades[at], example),
                background=like(background if background.ndim == 2 else background[at], example),
                target=like(solution.target[at], example),
                student_before=like(before[at], example),
                student_after=like(after[at], example),
                fused=like(fused[at], example),
                kl_before=float(kl_before[at]),
                kl_after=float(kl_after[at]),
                tau=float(tau[at]),
                trust=float(trust[at]),
                iterations=int(solution.iterations[at]),
                converged=bool(solution.converged[at]),
                seconds=seconds,
                metric=self.metric,
                path=[like(vectors[at], example)],
            )
            for at in range(len(queries))
        ]

    def _solve(self, problem: Problem) -> Solution:
        form, graded = problem.form, problem.form.graded.shape[1]
        start, products = to_numpy(form.scores(form.start)), form.gram()
        means = products.mean(1)
        gram = products - means[:, None] - means[:, :, None] + means.mean(1)[:, None, None]
        squares = np.einsum("bii->bi", products)[:, :graded].mean(1)
        spread = np.maximum(np.einsum("bii->b", gram) / gram.shape[1], RESOLUTION * np.maximum(squares, TINY))  # R^2
        gram /= spread[:, None, None]
        tau = self._tau(start, graded, spread)
        logits = start / tau[:, None] + problem.log_weights
        evidence = problem.trust[:, None] * problem.grades / self.temperature
        target = np.exp(log_softmax(evidence + logits))
        minimum = minimise(gram, logits, target, 1 / self.reach**2, self.max_iterations)
        after = logits + minimum.push
        weights = minimum.weights * (tau / spread)[:, None]
        vectors = form.start + form.combine(torch.from_numpy(weights).to(form.start))
        unseen = held_out(gram, after, minimum.log_after, target, self.reach**2, graded)
        place = self._place(unseen, (after - problem.log_weights)[:, :graded], problem)
        # Logits leave open a constant; the mean score of all documents at the new vector fixes it.
        moved = (means * weights).sum(-1)
        constant = start.mean(-1) + moved - (after - problem.log_weights).mean(-1) * tau
        fused = constant[:, None] + tau[:, None] * place
        return Solution(
            vectors,
            tau,
            target,
            minimum.log_before,
            minimum.log_after,
            fused,
            minimum.iterations,
            minimum.converged,
        )

    def _place(self, unseen: Array, fitted: Array, problem: Problem) -> Array:
        """Weigh a document's own grade in with what the others say of it.

        The more certain the grade, the less it may put the document below where the refined vector has it, if it is
        relevant, or above, if it is not.

        :param unseen: (B, K) logits that the other documents predict.
        :param fitted: (B, K) logits at the refined vector.
        :param problem: the grades and the trust in them.
        :return: (B, K) logits.
        """
        verdict = 2 * problem.grades[:, : unseen.shape[1]] - 1
        own = unseen + problem.trust[:, None] * self.own_grade * verdict
        kept = own + np.abs(verdict) * (fitted - own)
        return np.where(verdict > 0, np.maximum(own, kept), np.minimum(own, kept))

    def _tau(self, start: Array, graded: int, spread: Array) -> Array:
        """Return the similarity that counts as one nat, from how the background's similarities scatter."""
        if start.shape[1] - graded < 2:
            return BANDWIDTH * np.sqrt(spread)
        scatter: Array = np.maximum(start[:, graded:].std(-1), np.sqrt(RESOLUTION * spread))
        return scatter / self.prior


def _check(documents: Tensor, grades: Tensor, background: Tensor | None, population: int | None, trust: Tensor) -> None:
    if documents.shape[1] < 2:
        raise ValueError(
            f"documents must be at least 2, got {documents.shape[1]}: a grade needs another to differ from"
        )
    for name, values in (("grades", grades), ("trust", trust)):
        least, most = (float(value) for value in values.aminmax())
        if least < 0 or most > 1:
            raise ValueError(f"{name} must be in [0, 1], got {least} to {most}")
    if background is not None and background.shape[-2] < 1:
        raise ValueError("background is empty; leave it out to refine without one")
    if population is not None and population < 1:
        raise ValueError(f"population must be at least 1, got {population}")
