"""What was graded moves the query, as far as the teacher is to be followed."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.points import Vectors
from llama_index_refine.qdrant.views.dense import View, stored
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.base import BaseRefiner
from llama_index_refine.refining.matrices import in_units
from llama_index_refine.refining.refiner import QueryRefiner
from llama_index_refine.refining.trust import FixedTrust, Teacher, certainty, shrink, stretch
from llama_index_refine.retrieval.events import RefiningEvent
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.remembering import moved_to, within
from llama_index_refine.scheduling import perform, tell
from llama_index_refine.similarity import METRICS, Metric

# How queries move where nobody says how.
USUAL = {metric: QueryRefiner(metric) for metric in METRICS}


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
    certainty: NDArray[np.float32]
    signal: float
    query_str: str = ""
    scatter: float | None = None


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
            return USUAL[metric]
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
        alike: dict[Any, list[int]] = {}
        for place, one in enumerate(items):
            background = None if one.background is None else len(one.background)
            sizes = len(one.query), len(one.grades), background, one.population
            alike.setdefault((sizes, one.metric, one.distance, one.scatter is None), []).append(place)
        results: list[Any] = [None] * len(items)
        for places in alike.values():
            for place, result in zip(places, self._refined([items[place] for place in places]), strict=True):
                results[place] = result
        for lesson, result in zip(items, results, strict=True):
            if isinstance(result, Refinement):
                tell(partial(_taught, lesson, result))
        return results

    async def arun(self, items: Sequence[Lesson]) -> Sequence[Any]:
        """Refine at once: it takes milliseconds, less than handing it to a thread would be worth."""
        return self.run(items)

    def _refined(self, lessons: Sequence[Lesson]) -> list[Any]:
        """Refine lessons of one shape. One bad lesson must not fail those it shares a batch with."""
        first = lessons[0]
        background = first.background
        try:
            if any(lesson.background is not background for lesson in lessons):
                background = torch.stack([lesson.background for lesson in lessons if lesson.background is not None])
            refinements = self.refiner_for(first.metric, first.distance).refine_batch(
                np.stack([lesson.query for lesson in lessons]),
                torch.stack([lesson.documents for lesson in lessons]),
                torch.stack([lesson.grades for lesson in lessons]),
                background,
                population=first.population,
                trust=np.stack([lesson.trust for lesson in lessons]),
                signal=[lesson.signal for lesson in lessons],
                certainty=np.stack([lesson.certainty for lesson in lessons]),
                scatter=None if first.scatter is None else [lesson.scatter for lesson in lessons],
            )
            return list(refinements)
        except Exception as error:
            return [error] if len(lessons) == 1 else [self._refined([lesson])[0] for lesson in lessons]


async def move(refining: Refining, teacher: Teacher, feedback: Feedback, background: Background | None) -> Refinement:
    """Refine a query by all that was graded so far.

    :param refining: moves it.
    :param teacher: what is known of the teacher.
    :param feedback: what was graded.
    :param background: documents taken as irrelevant, None for none.
    :return: the refinement.
    """
    feedback.doing = "refining"
    view, others, population = feedback.view, Vectors(), None
    # Graded documents would count twice.
    known = feedback.shown | {loan.point for loan in feedback.loans}
    keep = [at for at, point in enumerate(background.ids) if point not in known] if background else []
    if background is not None and keep:
        others = background.vectors if len(keep) == len(background.ids) else background.vectors.at(keep)
        population = max(background.population - len(feedback.shown), len(keep))
    borrowed = feedback.loans if keep else []
    documents, rest, *loans = view.rows(feedback.documents, others, *[loan.vectors for loan in borrowed])
    # What the teacher is unsure of is drawn to the mean, and all that it said is stretched. For its own document's
    # place a grade counts by as much as it was decided before.
    read, certain = np.array(feedback.grades, dtype=np.float64), np.ones(len(feedback.grades), dtype=np.float32)
    if said := feedback.said():
        given, spread = read[said], [feedback.spread[at] for at in said]
        shrunk = shrink(given.tolist(), spread) if any(spread) else given
        read[said] = stretch(shrunk, given)
        certain[said] = feedback.certainty = certainty(given)
    grades = torch.tensor(read, dtype=torch.float32)
    if places := heard(teacher, feedback):
        feedback.trust, signal = teacher.foresee(*feedback.evidence(places))
    else:
        feedback.trust, signal = teacher.trust(), teacher.signal()
    lesson = Lesson(
        view.row,
        documents,
        grades,
        rest if keep else None,
        population,
        view.metric,
        view.distance,
        np.array([feedback.trust if share is None else share for share in feedback.believed], dtype=np.float32),
        certain,
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
            trust=np.r_[lesson.trust, [np.float32(loan.belief * feedback.trust) for loan in borrowed]],
            certainty=np.r_[certain, np.ones(len(borrowed), dtype=np.float32)],
        )
        wider: Refinement = await perform("refine", refining, every)
        refinement = within(refinement, np.asarray(wider.vector))
    if view.ahead is not None:
        feedback.ahead = await _ahead(refining, view.ahead, lesson, feedback.documents, others)
    # The tokens of a matrix alone have a length of their own.
    if view.shape is not None and (unit := view.unit(np.asarray(refinement.vector))) != 1:
        refinement = in_units(refinement, unit)
    if view.whole:
        refinement = moved_to(refinement, stored(np.asarray(refinement.vector), view.space))
    feedback.path.append(refinement.vector)
    return refinement


def heard(teacher: Teacher, feedback: Feedback) -> list[int]:
    """Say which grades tell of the teacher.

    What was graded before has told what it can, unless nothing has been heard of the teacher here. Of a teacher that
    the user knows, nothing tells.

    :param teacher: what is known of it.
    :param feedback: what it has graded.
    :return: the places of these grades.
    """
    if isinstance(teacher, FixedTrust):
        return []
    said = feedback.said()
    return [at for at in said if feedback.ids[at] not in feedback.recalled] or ([] if teacher.varied else said)


async def _ahead(refining: Refining, view: View, lesson: Lesson, documents: Vectors, others: Vectors) -> np.ndarray:
    """Refine the search that chooses what is compared, by the same grades."""
    rows, rest = view.rows(documents, others)
    background = rest if len(others.dense) else None
    own = replace(lesson, query=view.row, documents=rows, background=background, metric=view.metric)
    refinement: Refinement = await perform("refine", refining, own)
    return np.asarray(refinement.vector)


def as_matrices(refinement: Refinement, view: View) -> Refinement:
    """Write a refinement's rows as the matrices that they are.

    :param refinement: how the query moved.
    :param view: what made its rows, which knows their shape.
    :return: the same for whoever asked.
    """

    def cut(rows: Any) -> NDArray[np.float32]:
        return np.asarray(rows).reshape(*np.shape(rows)[:-1], *(view.shape or ()))

    return replace(
        refinement,
        query=cut(refinement.query),
        vector=cut(refinement.vector),
        documents=cut(refinement.documents),
        background=cut(refinement.background),
        path=[cut(row) for row in refinement.path],
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
