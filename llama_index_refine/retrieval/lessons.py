"""The step that refines the query."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.base import BaseRefiner
from llama_index_refine.refining.refiner import QueryRefiner
from llama_index_refine.retrieval.events import RefiningEvent
from llama_index_refine.similarity import Metric
from llama_index_refine.tracing import tell


@dataclass(frozen=True)
class Lesson:
    """What one query was taught: the arguments of `QueryRefiner.refine`."""

    query: np.ndarray
    documents: Tensor
    grades: Tensor
    background: Tensor | None
    population: int | None
    metric: Metric
    distance: Metric
    trust: NDArray[np.float32]
    signal: float
    query_str: str = ""
    scatter: float | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must agree for lessons to be refined together."""
        background = None if self.background is None else len(self.background)
        known = self.scatter is not None
        return len(self.query), len(self.grades), self.population, self.metric, self.distance, known, background


@dataclass(frozen=True)
class Refining:
    """Refines queries. An item is a `Lesson`, its result a `Refinement`."""

    refiner: BaseRefiner | None = None

    def refiner_for(self, metric: Metric, distance: Metric) -> BaseRefiner:
        """Return the refiner for rows.

        :param metric: the distance between rows.
        :param distance: the collection's.
        :return: the one given, or one for these rows.
        :raises ValueError: the one given is for another collection's distance.
        """
        if self.refiner is None:
            return QueryRefiner(metric)
        if self.refiner.metric != distance:
            raise ValueError(
                f"refiner is for {self.refiner.metric}, the collection is {distance}: use "
                f"QueryRefiner(metric={distance!r})"
            )
        if metric == distance:
            return self.refiner
        fitting = copy(self.refiner)
        fitting.metric = metric
        return fitting

    def run(self, items: Sequence[Lesson]) -> Sequence[Any]:
        """Refine lessons of one shape in one batch."""
        results: dict[int, Any] = {}
        numbered = sorted(enumerate(items), key=lambda entry: repr(entry[1].shape))
        for _, group in groupby(numbered, key=lambda entry: entry[1].shape):
            places, lessons = zip(*group, strict=True)
            results |= zip(places, self._refined(lessons), strict=True)
        for place, lesson in enumerate(items):
            if isinstance(results[place], Refinement):
                tell(partial(_taught, lesson, results[place]))
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
        refiner = self.refiner_for(first.metric, first.distance)
        if len(lessons) == 1:
            return [
                refiner.refine(
                    first.query,
                    first.documents,
                    first.grades,
                    first.background,
                    population=first.population,
                    trust=first.trust,
                    signal=first.signal,
                    scatter=first.scatter,
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
            trust=np.stack([lesson.trust for lesson in lessons]),
            signal=[lesson.signal for lesson in lessons],
            scatter=None if first.scatter is None else [lesson.scatter for lesson in lessons],
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
