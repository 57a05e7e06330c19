"""What every refiner of query vectors has in common: what it takes, and the account it gives."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.matrices import is_matrix, refine_matrix
from llama_index_refine.refining.newton import divergence
from llama_index_refine.refining.problem import Problem, like, normal_form, to_tensor
from llama_index_refine.similarity import METRICS, Metric

# What is believed of a teacher's signal-to-noise ratio before it has graded anything (`trust.Belief`).
TYPICAL_SIGNAL = 0.26
ROUNDING = 1e-6


@dataclass(frozen=True)
class Solution:
    """Where the queries should go.

    :param vectors: (B, d)
    :param tau: (B,) the student's temperature: the similarity that counts as one nat.
    :param target: (B, M) the distribution the student was drawn to.
    :param log_students: (2, B, M) logarithm of the student's distribution before, and after.
    :param fused: (B, K) similarities of the graded documents, with their own grade weighed in.
    :param held_out: (B, K) their similarities, as the other documents' grades predict them.
    :param iterations: B numbers.
    :param converged: B truths.
    """

    vectors: Tensor
    tau: Tensor
    target: Tensor
    log_students: Tensor
    fused: Tensor
    held_out: Tensor
    iterations: list[int]
    converged: list[bool]


class BaseRefiner(ABC):
    """Moves query vectors by grades; a subclass says where to.

    :param metric: the collection's distance: cosine, dot or euclid.
    :param device: where to compute; None for where the query is.
    :raises ValueError: another metric.
    """

    wants_background = True
    takes_matrices = True
    # What a document's own grade adds to its place in the final order, in nats from 0.5 to 1.
    own_grade = 0.0

    def __init__(self, metric: Metric = "cosine", device: str | torch.device | None = None) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
        self.metric: Metric = metric
        self.device = device

    def refine(
        self,
        query: Any,
        documents: Any,
        grades: Any,
        background: Any = None,
        *,
        population: int | None = None,
        trust: Any = 1.0,
        signal: float = TYPICAL_SIGNAL,
        scatter: float | None = None,
        certainty: Any = 1.0,
    ) -> Refinement:
        """Refine one query: a vector, or, where documents are compared by MaxSim, a matrix with a vector a token.

        :param query: (d,) numpy array or torch tensor; (T, d) for MaxSim.
        :param documents: (K, d) vectors of the graded documents, K at least 2, or 1 where there is a background; for
            MaxSim a list of K matrices, (n_i, d) each.
        :param grades: (K,) in [0, 1].
        :param background: (N, d) vectors of documents taken as irrelevant, N at least 1; None for none. For MaxSim a
            list of N matrices.
        :param population: how many documents the background stands for; None where each is only itself.
        :param trust: how far the grades are believed, in [0, 1], one number or (K,); at 0 nothing moves.
        :param signal: the signal-to-noise ratio of this teacher's grades in this space, above 0, as its `Reliability`
            has learnt it.
        :param scatter: the standard deviation of the similarity to the query over the collection, above 0; None for the
            background's, which says little where nearly all similarities are 0.
        :param certainty: how much a grade counts for its own document's place, beside what the vectors say of it, in
            [0, 1], one number or (K,).
        :return: the refinement. Of a matrix, `vector` is (T, d), and `documents` (K, T, d) has the vectors that the
            tokens match best.
        :raises ValueError: naming the argument and what is wrong with it.
        """
        options = {
            "population": population,
            "trust": trust,
            "signal": signal,
            "scatter": scatter,
            "certainty": certainty,
        }
        if not is_matrix(query):
            return self._refine("query", query, 0, documents, grades, background, **options)[0]
        if not self.takes_matrices:
            raise ValueError(f"query must have the shape (any): a {type(self).__name__} cannot refine matrices")
        return refine_matrix(self, query, documents, grades, background, **options)

    def refine_batch(
        self,
        queries: Any,
        documents: Any,
        grades: Any,
        background: Any = None,
        *,
        population: int | None = None,
        trust: Any = None,
        signal: Any = None,
        scatter: Any = None,
        certainty: Any = None,
    ) -> list[Refinement]:
        """Refine many query vectors at once.

        :param queries: (B, d).
        :param documents: (B, K, d).
        :param grades: (B, K) in [0, 1].
        :param background: (N, d), the same for all queries, or (B, N, d); None for none.
        :param population: how many documents the background stands for; None where each is only itself.
        :param trust: (B,) or (B, K) how far the grades are believed, in [0, 1]; None for 1.
        :param signal: (B,) signal-to-noise ratios of the grades, above 0; None for what is typical.
        :param scatter: (B,) standard deviations of the similarities over the collection, above 0; None for the
            background's.
        :param certainty: (B,) or (B, K) how much a grade counts for its own document's place, in [0, 1]; None for 1.
        :return: one refinement per query.
        :raises ValueError: naming the argument and what is wrong with it.
        """
        options = {
            "population": population,
            "trust": 1.0 if trust is None else trust,
            "scatter": scatter,
            "certainty": 1.0 if certainty is None else certainty,
        }
        signal = [TYPICAL_SIGNAL] * len(queries) if signal is None else signal
        return self._refine("queries", queries, 1, documents, grades, background, signal=signal, **options)

    @torch.inference_mode()
    def _refine(
        self,
        name: str,
        queries: Any,
        lead: int,
        documents: Any,
        grades: Any,
        background: Any,
        population: int | None,
        trust: Any,
        signal: Any,
        scatter: Any,
        certainty: Any,
    ) -> list[Refinement]:
        """Refine one query, where arrays have no dimension before those of a query, or a batch, where they have one."""
        began, example = time.perf_counter(), queries
        queries = to_tensor(name, queries, (None,) * (lead + 1), self.device)
        (*batch, size), place = queries.shape, queries.device
        documents = to_tensor("documents", documents, (*batch, None, size), place)
        grades = to_tensor("grades", grades, documents.shape[:-1], place)
        if background is not None:
            shape = (None, size) if getattr(background, "ndim", 2) == 2 else (*batch, None, size)
            background = to_tensor("background", background, shape, place)
        shares = {"grades": grades}
        for what, values in (("trust", trust), ("certainty", certainty)):
            share = to_tensor(what, values, grades.shape[: np.ndim(values)], place)
            # What was given for all grades of a query is each one's.
            shares[what] = (share if share.ndim > lead else share[..., None]).expand(grades.shape)
        signal = to_tensor("signal", signal, tuple(batch)).reshape(-1).tolist()
        if scatter is not None:
            scatter = to_tensor("scatter", scatter, tuple(batch), place).double().reshape(-1, 1)
            if not float(scatter.min()) > 0:
                raise ValueError(f"scatter must be above 0, got {float(scatter.min())}")
        if not lead:
            queries, documents = queries[None], documents[None]
            shares = {what: values[None] for what, values in shares.items()}
        _check(documents, shares, background, population, signal)
        if background is None:
            background = documents[0, :0]
        graded, size = documents.shape[1], background.shape[-2]
        log_weight = math.log(math.sqrt(max(population, size)) / size) if size and population is not None else 0.0
        log_weights = torch.tensor([0.0] * graded + [log_weight] * size, dtype=torch.float64, device=queries.device)
        problem = Problem(
            self.metric,
            queries,
            *normal_form(queries, documents, background, self.metric),
            log_weights,
            shares["grades"].clamp(0, 1).double(),
            shares["trust"].double(),
            shares["certainty"].double(),
            signal,
            scatter,
        )
        solution = self._solve(problem)
        before, after = solution.log_students.exp()
        arrays = {
            "query": queries,
            "vector": solution.vectors,
            "documents": documents,
            "grades": problem.grades,
            "target": solution.target,
            "student_before": before,
            "student_after": after,
            "fused": solution.fused,
            "held_out": solution.held_out,
        }
        arrays = {name: like(values, example) for name, values in arrays.items()}
        around = like(background, example)
        kl = divergence(solution.target, solution.log_students).T
        numbers = (values.tolist() for values in (kl, solution.tau, shares["trust"].mean(-1)))
        rows = zip(*numbers, solution.iterations, solution.converged, strict=True)
        seconds = time.perf_counter() - began
        return [
            Refinement(
                **{name: values[at] for name, values in arrays.items()},
                background=around if around.ndim == 2 else around[at],
                kl_before=kl_before,
                kl_after=kl_after,
                tau=tau,
                trust=share,
                iterations=iterations,
                converged=converged,
                seconds=seconds,
                metric=self.metric,
                path=[arrays["vector"][at]],
            )
            for at, ((kl_before, kl_after), tau, share, iterations, converged) in enumerate(rows)
        ]

    @abstractmethod
    def _solve(self, problem: Problem) -> Solution:
        """Say where the queries should go."""


def _check(
    documents: Tensor,
    shares: dict[str, Tensor],
    background: Tensor | None,
    population: int | None,
    signal: list[float],
) -> None:
    if documents.shape[1] + (background is not None) < 2:
        raise ValueError(
            f"documents must be at least 2, or 1 with a background, got {documents.shape[1]}: a grade needs another "
            "to compare with"
        )
    for name, values in shares.items():
        least, most = map(float, values.aminmax())
        # An average of grades may leave the range by a rounding.
        if least < -ROUNDING or most > 1 + ROUNDING:
            raise ValueError(f"{name} must be in [0, 1], got {least} to {most}")
    if not all(ratio > 0 for ratio in signal):
        raise ValueError(f"signal must be above 0, got {min(signal)}")
    if background is not None and background.shape[-2] < 1:
        raise ValueError("background is empty; leave it out to refine without one")
    if population is not None and population < 1:
        raise ValueError(f"population must be at least 1, got {population}")
