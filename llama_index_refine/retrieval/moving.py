"""What was graded moves the query, as far as the teacher is to be followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.vectors import Vectors
from llama_index_refine.qdrant.views.base import Row, View
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.base import TYPICAL_SIGNAL
from llama_index_refine.refining.matrices import in_units
from llama_index_refine.refining.trust import Reliability, shrink
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.retrieval.lessons import Lesson, Refining
from llama_index_refine.retrieval.remembering import within
from llama_index_refine.similarity import similarity
from llama_index_refine.steps import Step, Steps


@dataclass(frozen=True)
class Moving:
    """Moves a query by its grades.

    :param refining: moves it.
    :param trust: the teacher's record, or how far to follow it, in [0, 1].
    """

    refining: Refining
    trust: Reliability | float

    def move(self, feedback: Feedback, background: Background | None, trust: float) -> Steps[Refinement]:
        """Refine the query by all that was graded so far.

        :param feedback: what was.
        :param background: documents taken as irrelevant, None for none.
        :param trust: how far to follow the teacher, in [0, 1].
        :return: the refinement.
        """
        view, others, population = feedback.view, Vectors.none(), None
        if background is not None:
            # A background document that has been graded would be counted twice, the second time as irrelevant.
            known = feedback.shown | {loan.point for loan in feedback.carried}
            keep = [at for at, point in enumerate(background.ids) if point not in known]
            if keep:
                others = background.vectors if len(keep) == len(background.ids) else background.vectors.at(keep)
                population = max(background.population - len(feedback.shown), len(keep))
        feedback.doing = "refining"
        borrowed = feedback.borrowed() if len(others) else []
        documents, rest, *loans = view.rows(feedback.documents, others, *[loan.vectors for loan in borrowed])
        grades = torch.tensor(self._read(feedback), dtype=torch.float32)
        signal = self.trust.signal() if isinstance(self.trust, Reliability) else TYPICAL_SIGNAL
        shares = np.array([trust if share is None else share for share in feedback.believed], dtype=np.float32)
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
        refinement: Refinement = yield Step("refine", self.refining, lesson)
        if borrowed:
            every = replace(
                lesson,
                documents=torch.cat([documents, *loans]),
                grades=torch.cat([grades, torch.tensor([loan.grade for loan in borrowed])]),
                trust=np.r_[shares, [np.float32(loan.belief * trust) for loan in borrowed]],
            )
            wider: Refinement = yield Step("refine", self.refining, every)
            refinement = within(refinement, np.asarray(wider.vector))
        refinement = in_units(refinement, view.unit(np.asarray(refinement.vector)))
        if view.ahead is not None:
            feedback.ahead = yield from self._ahead(view.ahead, lesson, feedback.documents, others)
        feedback.path.append(refinement.vector)
        return refinement

    def _ahead(self, view: View, lesson: Lesson, documents: Vectors, others: Vectors) -> Steps[Row]:
        """Refine the search that chooses what is compared, by the same grades."""
        rows, rest = view.rows(documents, others)
        own = replace(
            lesson, query=view.row, documents=rows, background=rest if len(others) else None, metric=view.metric
        )
        refinement: Refinement = yield Step("refine", self.refining, own)
        return np.asarray(refinement.vector)

    def share(self, feedback: Feedback, final: bool = True) -> float:
        """Say how far to follow the teacher.

        :param feedback: what it has graded.
        :param final: whether that is all of it: its record takes in a query's grades once, at the end.
        :return: the share, in [0, 1].
        """
        if not isinstance(self.trust, Reliability):
            return self.trust
        said = feedback.said()
        fresh = [at for at in said if feedback.ids[at] not in feedback.recalled]
        # What was graded before has told what it can of the teacher, unless nothing has been heard of it here.
        if not said or (not fresh and self.trust.belief.varied):
            return self.trust.belief.trust()
        said = fresh or said
        (documents,) = feedback.view.rows(feedback.documents.at(said))
        similarities = similarity(torch.from_numpy(feedback.view.row), documents, feedback.view.metric)
        judge = self.trust.observe if final else self.trust.foresee
        return judge(documents.numpy(), [feedback.grades[at] for at in said], similarities.numpy())

    def _read(self, feedback: Feedback) -> NDArray[np.float64]:
        """Return the grades as they count: uncertain ones drawn to the mean, on the scale that the teacher uses."""
        grades = np.array(feedback.grades, dtype=np.float64)
        said = feedback.said()
        if said:
            heard = np.array(shrink(grades[said].tolist(), [feedback.spread[at] for at in said]))
            grades[said] = self.trust.calibrate(heard) if isinstance(self.trust, Reliability) else heard
        return grades


def shaped(refinement: Refinement, feedback: Feedback) -> Refinement:
    """Write a refinement's rows as what they are: vectors, or matrices.

    :param refinement: how the query moved.
    :param feedback: what it was moved by.
    :return: the same for whoever asked.
    """
    view = feedback.view
    refinement = replace(refinement, path=_of_one_width(feedback.path))
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
        path=[cut(row) for row in refinement.path],
        metric=view.distance,
    )


def _of_one_width(path: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return rows as wide as the widest: one over few terms is 0 in those that were met later."""
    widest = max(map(len, path), default=0)
    return [row if len(row) == widest else np.pad(row, (0, widest - len(row))) for row in path]
