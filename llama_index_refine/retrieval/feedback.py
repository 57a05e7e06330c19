"""What has been graded for one query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import Grades
from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.errors import in_a_sentence
from llama_index_refine.qdrant.points import Found, Grouping, PointId, Vectors
from llama_index_refine.qdrant.views.dense import Query, Row, View
from llama_index_refine.similarity import similarity

# Below this mean grade a query has yet to find what is relevant.
LITTLE = 0.25


class NotRefinedError(Exception):
    """Why there is nothing to refine by."""


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
    :param ids: the graded documents, with `nodes`, `documents` (their vectors), `grades` in [0, 1], `spread` (one
        standard deviation of a grade, None where it is not known) and `believed` (how far to follow a grade, in [0, 1],
        None for as far as the teacher).
    :param shown: the documents that need not be shown to the teacher any more: graded ones, and those it has nothing to
        say of.
    :param grouping: how many nodes of one document are returned.
    :param groups: the document of each point that was found.
    :param candidates: all documents that came with their vectors, which are `brought`.
    :param recalled: graded documents whose grade a memory knew.
    :param passed: nodes that were left ungraded on purpose when the query was asked before.
    :param settled: whether all its grades were given when it was asked before, so that only new nodes are news.
    :param loans: grades that similar queries lend, of documents that this one has none for.
    :param asked: how many nodes the teacher was shown.
    :param saved: how many more it need not be shown, as their grades would hardly change the list.
    :param over: whether no more is to be graded, as grading has failed.
    :param trust: how far the teacher is followed, in [0, 1], in the light of these grades.
    :param certainty: how decided the teacher's grades are, in [0, 1].
    :param doing: what is being done, for whoever reads that it failed.
    """

    query: QueryBundle
    first: Query
    view: View
    account: Account
    grouping: Grouping = field(default_factory=Grouping)
    groups: dict[PointId, str | None] = field(default_factory=dict)
    ids: list[PointId] = field(default_factory=list)
    nodes: list[NodeWithScore] = field(default_factory=list)
    documents: Vectors = field(default_factory=Vectors)
    grades: list[float] = field(default_factory=list)
    spread: list[float | None] = field(default_factory=list)
    believed: list[float | None] = field(default_factory=list)
    shown: set[PointId] = field(default_factory=set)
    candidates: list[PointId] = field(default_factory=list)
    brought: Vectors = field(default_factory=Vectors)
    recalled: set[PointId] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    settled: bool = False
    loans: list[Loan] = field(default_factory=list)
    asked: int = 0
    rounds: int = 0
    saved: int = 0
    over: bool = False
    trust: float = 0.0
    certainty: float = 1.0
    path: list[Any] = field(default_factory=list)
    ahead: Row | None = None
    doing: str = ""

    def failed(self, error: Exception) -> str:
        """Say in one sentence why there is no more to be refined by."""
        return str(error) if isinstance(error, NotRefinedError) else f"{self.doing} failed: {in_a_sentence(error)}"

    def meet(self, found: Found) -> None:
        """Keep what came with its vectors, and of which document it is."""
        self.groups.update(zip(found.ids, found.groups, strict=False))
        known = {*self.candidates}
        fresh = [row for row, place in enumerate(found.placed) if found.ids[place] not in known]
        self.candidates += [found.ids[found.placed[row]] for row in fresh]
        self.brought = self.brought.beside(found.vectors.at(fresh))

    def take(self, found: Found, grades: Grades, believed: float | None = None) -> None:
        """Take in grades of points with nodes and vectors, as far as there are any."""
        self.shown.update(found.ids)
        self.groups.update(zip(found.ids, found.groups, strict=False))
        graded = [at for at, grade in enumerate(grades) if grade is not None]
        self.documents = self.documents.beside(found.vectors.at(graded))
        for at in graded:
            self.ids.append(found.ids[at])
            self.nodes.append(NodeWithScore(node=found.nodes[at], score=found.scores[at]))
            self.grades.append(grades[at] or 0.0)
            self.spread.append(grades.spread[at])
            self.believed.append(believed)
        self.loans = [loan for loan in self.loans if loan.point not in self.shown]

    def new(self, found: Found) -> list[int]:
        """Return the places of points that nobody has been shown, nor left out on purpose."""
        new = [at for at, point in enumerate(found.ids) if point not in self.shown]
        if self.passed:
            new = [at for at in new if same_id(found.ids[at]) not in self.passed]
        return new

    def left(self, feedback_top_k: int) -> int:
        """Return how many nodes may still be shown to the teacher.

        Similar queries may lend half of all grades, but none where hardly anything was relevant so far: then the
        query's own grades have yet to find its documents.
        """
        found = float(np.mean(self.grades)) if self.grades else 0.0
        lent = min(len(self.loans), feedback_top_k // 2) if found >= LITTLE else 0
        return 0 if self.over or self.account.exhausted() else max(feedback_top_k - self.asked - lent, 0)

    def spare(self, feedback_top_k: int) -> int:
        """Return how many more nodes could have been shown to the teacher, and paid for."""
        if self.account.exhausted():
            return 0
        most = self.account.budget.calls
        affordable = feedback_top_k if most is None else most - (self.account.whole or self.account).calls
        return max(min(feedback_top_k - self.asked, affordable), 0)

    def said(self) -> list[int]:
        """Return the places of the grades that the teacher gave."""
        return [at for at, share in enumerate(self.believed) if share is None]

    def evidence(self, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what some grades say of the teacher: (n, d) documents, (n,) grades and (n,) first similarities."""
        (rows,) = self.view.rows(self.documents.at(places))
        near = similarity(torch.from_numpy(self.view.row), rows, self.view.metric)
        return rows.numpy(), np.array([self.grades[at] for at in places]), near.numpy().astype(np.float64)
