"""The steps of a retrieval that do not go to Qdrant: embedding, grading, refining."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, QueryBundle
from torch import Tensor

from llama_index_refine.events import GradingEvent, RefiningEvent, dispatcher
from llama_index_refine.geometry import Metric
from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.refinement import Refinement
from llama_index_refine.refiner import QueryRefiner

# Queries that are graded side by side when a batch is run blocking; each has its own concurrent calls.
GRADING_THREADS = 16
# A teacher that keeps the deadline itself hands over what it has a moment after; one that does not is cut off then.
GRACE_SECONDS = 0.25


@dataclass(frozen=True)
class Embedding:
    """Embeds queries. An item is a `QueryBundle`, its result a list of floats."""

    model: Callable[[], BaseEmbedding]

    def run(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed one after the other."""
        embed = self.model().get_agg_embedding_from_queries
        results: list[Any] = []
        for item in items:
            try:
                results.append(embed(item.embedding_strs))
            except Exception as error:
                results.append(error)
        return results

    async def arun(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed side by side."""
        embed = self.model().aget_agg_embedding_from_queries
        return await asyncio.gather(*(embed(item.embedding_strs) for item in items), return_exceptions=True)


@dataclass(frozen=True)
class Sheet:
    """What a teacher is given: a query, its nodes, and the account that pays."""

    query: QueryBundle
    nodes: Sequence[BaseNode]
    account: Account


@dataclass(frozen=True)
class Grading:
    """Asks the teacher. An item is a `Sheet`, its result `Grades`."""

    grader: Callable[[], BaseGrader]

    def run(self, items: Sequence[Sheet]) -> Sequence[Any]:
        """Grade; several queries in threads."""
        if len(items) == 1:
            return [self._grade(items[0])]
        with ThreadPoolExecutor(GRADING_THREADS) as pool:
            futures = [pool.submit(copy_context().run, self._grade, item) for item in items]
            return [future.exception() or future.result() for future in futures]

    async def arun(self, items: Sequence[Sheet]) -> Sequence[Any]:
        """Grade all queries side by side."""
        if len(items) == 1:
            return [await self._agrade(items[0])]
        return await asyncio.gather(*(self._agrade(item) for item in items), return_exceptions=True)

    def _grade(self, sheet: Sheet) -> Grades:
        before, began = _spent(sheet.account), time.perf_counter()
        with sheet.account.active():
            grades = checked(self.grader().grade(sheet.query, sheet.nodes), len(sheet.nodes))
        dispatcher.event(_graded(sheet, grades, before, time.perf_counter() - began))
        return grades

    async def _agrade(self, sheet: Sheet) -> Grades:
        before, began = _spent(sheet.account), time.perf_counter()
        left = sheet.account.seconds_left()
        with sheet.account.active():
            grading = self.grader().agrade(sheet.query, sheet.nodes)
            given = await asyncio.wait_for(grading, None if left is None else left + GRACE_SECONDS)
        grades = checked(given, len(sheet.nodes))
        dispatcher.event(_graded(sheet, grades, before, time.perf_counter() - began))
        return grades


def _spent(account: Account) -> dict[str, int]:
    return {
        "llm_calls": account.calls,
        "prompt_tokens": account.prompt_tokens,
        "completion_tokens": account.completion_tokens,
        "cached_grades": account.cached,
    }


def _graded(sheet: Sheet, grades: Grades, before: dict[str, int], seconds: float) -> GradingEvent:
    given = [(node.node_id, grade) for node, grade in zip(sheet.nodes, grades, strict=True) if grade is not None]
    bill: dict[str, Any] = {name: spent - before[name] for name, spent in _spent(sheet.account).items()}
    return GradingEvent(
        query_str=sheet.query.query_str,
        node_ids=[node_id for node_id, _ in given],
        grades=[grade for _, grade in given],
        ungraded=len(grades) - len(given),
        failures=list(sheet.account.failures),
        milliseconds=1000 * seconds,
        **bill,
    )


def checked(grades: Sequence[float | None], count: int) -> Grades:
    """Take a teacher's answer as grades.

    :param grades: what it returned.
    :param count: how many nodes it was shown.
    :return: the grades; NaN counts as no grade.
    :raises ValueError: another number of grades, or one outside [0, 1].
    """
    if len(grades) != count:
        raise ValueError(f"the grader returned {len(grades)} grades for {count} nodes")
    values = [None if grade is None or math.isnan(grade) else float(grade) for grade in grades]
    for value in values:
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"the grader returned {value}; a grade must be in [0, 1], or None")
    return Grades(values, getattr(grades, "spread", None))


@dataclass(frozen=True)
class Lesson:
    """What one query was taught: the arguments of `QueryRefiner.refine`."""

    query: np.ndarray
    documents: Tensor
    grades: Tensor
    background: Tensor | None
    population: int | None
    metric: Metric
    trust: float
    query_str: str = ""

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must agree for lessons to be refined together."""
        background = None if self.background is None else len(self.background)
        return len(self.query), len(self.grades), self.population, self.metric, background


@dataclass(frozen=True)
class Refining:
    """Refines queries. An item is a `Lesson`, its result a `Refinement`."""

    refiner: QueryRefiner | None = None

    def refiner_for(self, metric: Metric) -> QueryRefiner:
        """Return the refiner for a distance.

        :param metric: the collection's distance.
        :return: the one given, or one for that distance.
        :raises ValueError: the one given is for another.
        """
        if self.refiner is None:
            return QueryRefiner(metric)
        if self.refiner.metric != metric:
            raise ValueError(
                f"refiner is for {self.refiner.metric}, the collection is {metric}: use QueryRefiner(metric={metric!r})"
            )
        return self.refiner

    def run(self, items: Sequence[Lesson]) -> Sequence[Any]:
        """Refine lessons of one shape in one batch."""
        results: dict[int, Any] = {}
        numbered = sorted(enumerate(items), key=lambda entry: repr(entry[1].shape))
        for _, group in groupby(numbered, key=lambda entry: entry[1].shape):
            places, lessons = zip(*group, strict=True)
            results |= zip(places, self._refined(lessons), strict=True)
        for place, lesson in enumerate(items):
            if isinstance(results[place], Refinement):
                dispatcher.event(_taught(lesson, results[place]))
        return [results[place] for place in range(len(items))]

    async def arun(self, items: Sequence[Lesson]) -> Sequence[Any]:
        """Refine at once: it takes milliseconds, less than handing it to a thread would be worth."""
        return self.run(items)

    def _refined(self, lessons: Sequence[Lesson]) -> list[Any]:
        try:
            return list(self._refine(lessons))
        except Exception as error:
            # One bad lesson must not fail those it shares a batch with.
            return [error] if len(lessons) == 1 else [self._refined([lesson])[0] for lesson in lessons]

    def _refine(self, lessons: Sequence[Lesson]) -> list[Refinement]:
        first = lessons[0]
        refiner = self.refiner_for(first.metric)
        if len(lessons) == 1:
            return [
                refiner.refine(
                    first.query,
                    first.documents,
                    first.grades,
                    first.background,
                    population=first.population,
                    trust=first.trust,
                )
            ]
        background = first.background
        if any(lesson.background is not background for lesson in lessons):
            background = torch.stack([lesson.background for lesson in lessons if lesson.background is not None])
        return refiner.refine_batch(
            np.stack([lesson.query for lesson in lessons]),
            torch.stack([lesson.documents for lesson in lessons]),
            torch.stack([lesson.grades for lesson in lessons]),
            background,
            population=first.population,
            trust=[lesson.trust for lesson in lessons],
        )


def _taught(lesson: Lesson, refinement: Refinement) -> RefiningEvent:
    return RefiningEvent(
        query_str=lesson.query_str,
        graded=len(refinement.grades),
        background=len(refinement.background),
        kl_before=refinement.kl_before,
        kl_after=refinement.kl_after,
        tau=refinement.tau,
        trust=refinement.trust,
        iterations=refinement.iterations,
        converged=refinement.converged,
        milliseconds=1000 * refinement.seconds,
    )
