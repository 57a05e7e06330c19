"""What has been graded for one query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import Grades
from llama_index_refine.qdrant.errors import in_a_sentence
from llama_index_refine.qdrant.points import Found, PointId
from llama_index_refine.qdrant.vectors import Vectors
from llama_index_refine.qdrant.views.base import Query, Row, View
from llama_index_refine.refinement import Refinement


class NotRefinedError(Exception):
    """Why there is nothing to refine by."""


# Below this mean grade a query has yet to find what is relevant.
LITTLE = 0.25


@dataclass(frozen=True)
class Loan:
    """A document's grade that a similar query lends.

    :param point: the document.
    :param vectors: its vectors.
    :param grade: its relevance in [0, 1].
    :param belief: how far to believe it, in [0, 1], beside a grade of the teacher's for this query.
    """

    point: PointId
    vectors: Vectors
    grade: float
    belief: float


@dataclass
class Feedback:
    """What has been graded for one query so far.

    :param query: the query.
    :param first: what the first search was for.
    :param view: how refining it sees the collection.
    :param account: what grading it may cost, and has.
    :param doing: what is being done, for whoever reads that it failed.
    """

    query: QueryBundle
    first: Query
    view: View
    account: Account
    ids: list[PointId] = field(default_factory=list)
    nodes: list[NodeWithScore] = field(default_factory=list)
    documents: Vectors = field(default_factory=Vectors.none)
    grades: list[float] = field(default_factory=list)
    spread: list[float | None] = field(default_factory=list)
    believed: list[float | None] = field(default_factory=list)
    recalled: set[PointId] = field(default_factory=set)
    carried: list[Loan] = field(default_factory=list)
    shown: set[PointId] = field(default_factory=set)
    asked: int = 0
    sent: Query | None = None
    path: list[Any] = field(default_factory=list)
    ahead: Row | None = None
    rounds: int = 0
    saved: int = 0
    doing: str = ""

    def failed(self, error: Exception) -> str:
        """Say in one sentence why there is no more to be refined by."""
        return str(error) if isinstance(error, NotRefinedError) else f"{self.doing} failed: {in_a_sentence(error)}"

    def heard(self, found: Found, grades: Grades) -> None:
        """Take in one round's grades, of the nodes that got one."""
        self.rounds += 1
        self.asked += len(found.ids)
        self.add(found, grades)

    def add(self, found: Found, grades: Grades, believed: float | None = None) -> None:
        """Take in grades, `believed` so far in [0, 1] whoever the teacher is, None for as far as the teacher."""
        self.shown.update(found.ids)
        graded = [at for at, grade in enumerate(grades) if grade is not None]
        self.documents = self.documents.beside(found.vectors.at(graded))
        for at, grade in enumerate(grades):
            if grade is not None:
                self.ids.append(found.ids[at])
                self.nodes.append(NodeWithScore(node=found.nodes[at], score=found.scores[at]))
                self.grades.append(grade)
                self.spread.append(grades.spread[at] if grades.spread else None)
                self.believed.append(believed)

    def found(self) -> Found:
        """Return what has a grade, as a search would."""
        scores = [entry.score or 0.0 for entry in self.nodes]
        return Found(self.ids, scores, [entry.node for entry in self.nodes], Vectors.none())

    def new(self, found: Found) -> Found:
        """Return those of the points whose grade is not known yet."""
        kept = [at for at, point in enumerate(found.ids) if point not in self.shown]
        return found if len(kept) == len(found.ids) else found.at(kept)

    def borrowed(self) -> list[Loan]:
        """Return the grades that similar queries lend, of documents that this one has none for."""
        return [loan for loan in self.carried if loan.point not in self.shown]

    def spared(self, feedback_top_k: int) -> int:
        """Return how many grades need not be asked for, as similar queries lend them: half of all at most.

        None where hardly anything was relevant so far: then the query's own grades have yet to find its documents.
        """
        found = sum(self.grades) / len(self.grades) if self.grades else 0.0
        return min(len(self.borrowed()), feedback_top_k // 2) if found >= LITTLE else 0

    def refined(self, refinement: Refinement) -> Query:
        """Return what the next search is for, after the query moved."""
        return self.view.refined(np.asarray(refinement.vector), self.ahead)

    def said(self) -> list[int]:
        """Return the places of the grades that the teacher gave."""
        return [at for at, share in enumerate(self.believed) if share is None]
