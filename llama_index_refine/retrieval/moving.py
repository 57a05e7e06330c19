"""What was graded moves the query, as far as the teacher is to be followed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.views.dense import View
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.base import BaseRefiner
from llama_index_refine.refining.matrices import in_units
from llama_index_refine.refining.refiner import QueryRefiner
from llama_index_refine.refining.trust import Teacher, shrink
from llama_index_refine.retrieval.events import RefiningEvent
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.remembering import within
from llama_index_refine.scheduling import perform, tell
from llama_index_refine.similarity import Metric


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


@dataclass(frozen=True, eq=False)
class Refining:
    """Refines queries. An item is a `Lesson`, its result a `Refinement`.

    :param refiner: how a query moves; None for a `QueryRefiner` in the collection's distance.
    """

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
        background = first.background
        if any(lesson.background is not background for lesson in lessons):
            background = torch.stack([lesson.background for lesson in lessons if lesson.background is not None])
        return self.refiner_for(first.metric, first.distance).refine_batch(
            np.stack([lesson.query for lesson in lessons]),
            torch.stack([lesson.documents for lesson in lessons]),
            torch.stack([lesson.grades for lesson in lessons]),
            background,
            population=first.population,
            trust=np.stack([lesson.trust for lesson in lessons]),
            signal=[lesson.signal for lesson in lessons],
            scatter=None if first.scatter is None else [lesson.scatter for lesson in lessons],
        )


async def move(refining: Refining, teacher: Teacher, feedback: Feedback, background: Background | None) -> Refinement:
    """Refine a query by all that was graded so far.

    :param refining: moves it.
    :param teacher: what is known of the teacher.
    :param feedback: what was graded.
    :param background: documents taken as irrelevant, None for none.
    :return: the refinement.
    """
    feedback.doing = "refining"
    view, (others, population) = feedback.view, _others(feedback, background)
    borrowed = feedback.borrowed() if len(others) else []
    documents, rest, *loans = view.rows(feedback.documents, others, *[loan.vectors for loan in borrowed])
    grades, (feedback.trust, signal) = _read(teacher, feedback), follow(teacher, feedback)
    shares = np.array([feedback.trust if share is None else share for share in feedback.believed], dtype=np.float32)
    lesson = Lesson(
        view.row,
        documents,
        grades,
        rest if len(others) else None,
        population,
        view.metric,
        view.distance,
        shares,
        signal,
        feedback.query.query_str,
        view.scatter,
    )
    refinement: Refinement = await perform("refine", refining, lesson)
    if borrowed:
        every = replace(
            lesson,
            documents=torch.cat([documents, *loans]),
            grades=torch.cat([grades, torch.tensor([loan.grade for loan in borrowed])]),
            trust=np.r_[shares, [np.float32(loan.belief * feedback.trust) for loan in borrowed]],
        )
        wider: Refinement = await perform("refine", refining, every)
        refinement = within(refinement, np.asarray(wider.vector))
    if view.ahead is not None:
        feedback.ahead = await _ahead(refining, view.ahead, lesson, feedback.documents, others)
    refinement = in_units(refinement, view.unit(np.asarray(refinement.vector)))
    feedback.path.append(refinement.vector)
    return refinement


def follow(teacher: Teacher, feedback: Feedback) -> tuple[float, float]:
    """Say how far to follow the teacher, and how well the vectors explain its grades.

    :param teacher: what is known of it.
    :param feedback: what it has graded.
    :return: the trust in [0, 1] and the signal-to-noise ratio, in the light of these grades and all before.
    """
    if heard := _heard(teacher, feedback):
        return teacher.foresee(*feedback.evidence(heard))
    return teacher.trust(), teacher.signal()


def learn_of(teacher: Teacher, feedback: Feedback) -> None:
    """Take a query's grades into the teacher's record, once, when all of them are in.

    :param teacher: what is known of it.
    :param feedback: what it has graded.
    """
    if heard := _heard(teacher, feedback):
        teacher.observe(*feedback.evidence(heard))


def _heard(teacher: Teacher, feedback: Feedback) -> list[int]:
    """Return the places of grades that tell of the teacher.

    What was graded before has told what it can, unless nothing has been heard of the teacher here.
    """
    said = feedback.said()
    return [at for at in said if feedback.ids[at] not in feedback.recalled] or ([] if teacher.varied else said)


def _others(feedback: Feedback, background: Background | None) -> tuple[Vectors, int | None]:
    """Return the background without graded documents, which would count twice, and how many it stands for."""
    known = feedback.shown | {loan.point for loan in feedback.loans}
    keep = [at for at, point in enumerate(background.ids) if point not in known] if background else []
    if background is None or not keep:
        return Vectors.none(), None
    vectors = background.vectors if len(keep) == len(background.ids) else background.vectors.at(keep)
    return vectors, max(background.population - len(feedback.shown), len(keep))


def _read(teacher: Teacher, feedback: Feedback) -> Tensor:
    """Return the grades as they count: uncertain ones drawn to the mean, on the scale that the teacher uses."""
    grades = np.array(feedback.grades, dtype=np.float64)
    if said := feedback.said():
        grades[said] = teacher.calibrate(shrink(grades[said].tolist(), [feedback.spread[at] for at in said]))
    return torch.tensor(grades, dtype=torch.float32)


async def _ahead(refining: Refining, view: View, lesson: Lesson, documents: Vectors, others: Vectors) -> np.ndarray:
    """Refine the search that chooses what is compared, by the same grades."""
    rows, rest = view.rows(documents, others)
    background = rest if len(others) else None
    own = replace(lesson, query=view.row, documents=rows, background=background, metric=view.metric)
    refinement: Refinement = await perform("refine", refining, own)
    return np.asarray(refinement.vector)


def written(refinement: Refinement, feedback: Feedback) -> Refinement:
    """Write a refinement's rows as what they are: vectors, or matrices.

    :param refinement: how the query moved.
    :param feedback: what it was moved by.
    :return: the same for whoever asked.
    """
    view, widest = feedback.view, max(map(len, feedback.path), default=0)
    # A row over few terms is 0 in those that were met later.
    path = [row if len(row) == widest else np.pad(row, (0, widest - len(row))) for row in feedback.path]
    refinement = replace(refinement, path=path, metric=view.metric)
    if len(view.shape) == 1:
        return refinement

    def cut(rows: Any) -> NDArray[np.float32]:
        return np.asarray(rows).reshape(*np.shape(rows)[:-1], *view.shape)

    return replace(
        refinement,
        query=cut(refinement.query),
        vector=cut(refinement.vector),
        documents=cut(refinement.documents),
        background=cut(refinement.background),
        path=[cut(row) for row in path],
        metric=view.distance,
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
