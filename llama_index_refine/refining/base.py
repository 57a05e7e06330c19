"""What every refiner of query vectors has in common: what it takes, and the account it gives."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.arrays import Rows, device_of, like, rows_like, to_numpy, to_rows
from llama_index_refine.refining.geometry import Normal, normal_form
from llama_index_refine.refining.matrices import is_matrix, refine_matrix
from llama_index_refine.refining.newton import Array, divergence
from llama_index_refine.refining.trust import TYPICAL_SIGNAL
from llama_index_refine.similarity import METRICS, Metric

ROUNDING = 1e-6


@dataclass(frozen=True)
class Problem:
    """B refinements in normal form. The graded documents come first, the background after them: M = K + N.

    :param form: queries and documents.
    :param grades: (B, M), 0 for the background.
    :param trust: (B, M) in [0, 1], 0 for the background.
    :param signal: (B,) above 0.
    :param scatter: (B,) standard deviation of the scores before over the collection; NaN where it is not known.
    :param log_weights: (M,) how many documents each one stands for, as a logarithm.
    """

    form: Normal
    grades: Array
    trust: Array
    signal: Array
    scatter: Array
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
    :param held_out: (B, K) their scores in normal form, as the other documents' grades predict them.
    :param iterations: (B,)
    :param converged: (B,)
    """

    vectors: Rows
    tau: Array
    target: Array
    log_before: Array
    log_after: Array
    fused: Array
    held_out: Array
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]


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
        :return: the refinement. Of a matrix, `vector` is (T, d), and `documents` (K, T, d) has the vectors that the
            tokens match best.
        :raises ValueError: naming the argument and what is wrong with it.
        """
        if is_matrix(query):
            if not self.takes_matrices:
                raise ValueError(f"query must have the shape (any): a {type(self).__name__} refines no matrices")
            options = {"population": population, "trust": trust, "signal": signal, "scatter": scatter}
            return refine_matrix(self, query, documents, grades, background, **options)
        queries = to_rows("query", query, (None,), self.device)[None]
        place = device_of(queries) or "cpu"
        rows = to_rows("documents", documents, (None, queries.shape[1]), place)[None]
        marks = to_rows("grades", grades, (rows.shape[1],), place)[None]
        extra = None
        if background is not None:
            extra = to_rows("background", background, (None, queries.shape[1]), place)
        share = to_numpy(to_rows("trust", trust, marks.shape[1:] if np.ndim(trust) else (), place))
        ratio = to_numpy(to_rows("signal", np.array([signal], dtype=np.float32), (1,), place))
        wide = None if scatter is None else [scatter]
        (refinement,) = self._refine(query, queries, rows, to_numpy(marks), extra, population, share, ratio, wide)
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
        signal: Any = None,
        scatter: Any = None,
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
        :return: one refinement per query.
        :raises ValueError: naming the argument and what is wrong with it.
        """
        many = to_rows("queries", queries, (None, None), self.device)
        place = device_of(many) or "cpu"
        batch, size = many.shape
        rows = to_rows("documents", documents, (batch, None, size), place)
        marks = to_numpy(to_rows("grades", grades, (batch, rows.shape[1]), place))
        extra = None
        if background is not None:
            shape = (None, size) if getattr(background, "ndim", 2) == 2 else (batch, None, size)
            extra = to_rows("background", background, shape, place)
        share = np.ones(marks.shape)
        if trust is not None and np.ndim(trust) == 2:
            share = to_numpy(to_rows("trust", trust, marks.shape, place))
        elif trust is not None:
            share = to_numpy(to_rows("trust", trust, (batch,), place))[:, None]
        ratio = to_numpy(np.full(batch, TYPICAL_SIGNAL, dtype=np.float32))
        if signal is not None:
            ratio = to_numpy(to_rows("signal", signal, (batch,), place))
        return self._refine(queries, many, rows, marks, extra, population, share, ratio, scatter)

    def _refine(
        self,
        example: Any,
        queries: Rows,
        documents: Rows,
        grades: Array,
        background: Rows | None,
        population: int | None,
        trust: Array,
        signal: Array,
        scatter: Any,
    ) -> list[Refinement]:
        began = time.perf_counter()
        wide = np.full(len(queries), np.nan)
        if scatter is not None:
            wide = to_numpy(to_rows("scatter", np.asarray(scatter, dtype=np.float32), (len(queries),), "cpu"))
            if not float(wide.min()) > 0:
                raise ValueError(f"scatter must be above 0, got {float(wide.min())}")
        _check(documents, grades, background, population, trust, signal)
        grades = grades.clip(0, 1)
        if background is None:
            background = documents[0, :0]
        graded, size = documents.shape[1], background.shape[-2]
        log_weights = np.zeros(graded + size)
        if size and population is not None:
            log_weights[graded:] = math.log(math.sqrt(max(population, size)) / size)
        form = normal_form(queries, documents, background, self.metric)
        marks, shares = np.zeros((2, len(queries), graded + size))
        marks[:, :graded], shares[:, :graded] = grades, trust
        wide = wide / to_numpy(form.unit(form.start))
        solution = self._solve(Problem(form, marks, shares, signal, wide, log_weights))
        vectors = form.to_collection(solution.vectors)
        scores = rows_like(np.concatenate([solution.fused, solution.held_out], axis=1), vectors)
        places = form.similarity(scores, solution.vectors)
        fused, held_out = places[:, :graded], places[:, graded:]
        tau = solution.tau * to_numpy(form.unit(solution.vectors))
        students = np.stack([solution.log_before, solution.log_after])
        before, after = np.exp(students)
        kl_before, kl_after = divergence(solution.target, students)
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
                held_out=like(held_out[at], example),
                kl_before=float(kl_before[at]),
                kl_after=float(kl_after[at]),
                tau=float(tau[at]),
                trust=float(shares[at, :graded].mean()),
                iterations=int(solution.iterations[at]),
                converged=bool(solution.converged[at]),
                seconds=seconds,
                metric=self.metric,
                path=[like(vectors[at], example)],
            )
            for at in range(len(queries))
        ]

    @abstractmethod
    def _solve(self, problem: Problem) -> Solution:
        """Say where the queries should go."""


def _check(
    documents: Rows,
    grades: Array,
    background: Rows | None,
    population: int | None,
    trust: Array,
    signal: Array,
) -> None:
    if documents.shape[1] + (background is not None) < 2:
        raise ValueError(
            f"documents must be at least 2, or 1 with a background, got {documents.shape[1]}: a grade needs another to "
            "differ from"
        )
    for name, values in (("grades", grades), ("trust", trust)):
        least, most = float(values.min()), float(values.max())
        # An average of grades may leave the range by a rounding.
        if least < -ROUNDING or most > 1 + ROUNDING:
            raise ValueError(f"{name} must be in [0, 1], got {least} to {most}")
    if not float(signal.min()) > 0:
        raise ValueError(f"signal must be above 0, got {float(signal.min())}")
    if background is not None and background.shape[-2] < 1:
        raise ValueError("background is empty; leave it out to refine without one")
    if population is not None and population < 1:
        raise ValueError(f"population must be at least 1, got {population}")
