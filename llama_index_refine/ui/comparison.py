"""One query answered three ways: as the collection ranks it, reranked by the grades, and refined."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.refinement import Refinement
from llama_index_refine.retriever import RefinedRetriever
from llama_index_refine.selection import Selection

logger = logging.getLogger(__name__)

DEPTH = 200
"""How far down the plain ranking a document's place before refining is looked for."""

THUMBS = "my thumbs only"
"""The teacher that is always there: nobody but the user."""


@dataclass(frozen=True)
class Result:
    """One document in one of the three lists.

    :param node: the document.
    :param grade: what the teacher or the user says of it, None where neither has.
    :param before: its rank in the plain search, from 1; None where it was not among the first `DEPTH`.
    :param judged: whether the grade is the user's own.
    """

    node: BaseNode
    grade: float | None
    before: int | None
    judged: bool


@dataclass(frozen=True)
class Settings:
    """What the user has set on the page.

    :param teacher: the teacher's name.
    :param feedback_top_k: documents to grade, at least 2.
    :param rounds: how often to ask the teacher, at least 1.
    :param similarity_top_k: documents in each list, at least 1.
    """

    teacher: str
    feedback_top_k: int = 20
    rounds: int = 2
    similarity_top_k: int = 10


@dataclass(frozen=True)
class Comparison:
    """The three lists, how the query moved, and what of the refined ranking belongs; None where nobody can say.

    `reranking` is the bill of what only the reranked list was graded for.
    """

    plain: Sequence[Result]
    reranked: Sequence[Result]
    refined: Sequence[Result]
    refinement: Refinement
    selection: Selection | None = None
    reranking: Account = field(default_factory=Account)

    @property
    def cut(self) -> int | None:
        """After how many refined results the selection ends; None where it goes on below them, or is not known."""
        if self.selection is None:
            return None
        chosen = {entry.node_id for entry in self.selection.nodes}
        inside = sum(result.node.node_id in chosen for result in self.refined)
        return None if inside == len(self.refined) < len(chosen) else inside

    @property
    def gained(self) -> int:
        """How many refined results the plain list does not show."""
        shown = {result.node.node_id for result in self.plain}
        return sum(result.node.node_id not in shown for result in self.refined)


class Playground:
    """Answers queries three ways, and remembers grades so that a change of settings is not paid for twice.

    :param retriever: whose collection and embedding model to use; its own settings are the first ones shown.
    :param teachers: teachers by the name to show; `THUMBS` is added.
    """

    def __init__(self, retriever: RefinedRetriever, teachers: Mapping[str, BaseGrader]) -> None:
        self.retriever = retriever
        self._teachers = {name: CachedGrader(teacher) for name, teacher in teachers.items()}

    @property
    def teachers(self) -> list[str]:
        """The names to choose from."""
        return [*self._teachers, THUMBS]

    def compare(self, query: str, settings: Settings, judgements: Mapping[str, float] | None = None) -> Comparison:
        """Answer one query.

        :param query: its text, not blank.
        :param settings: what the user has set.
        :param judgements: the user's own grades in [0, 1] by node id; they count before the teacher's.
        :return: the three lists.
        :raises ValueError: a blank query, or a teacher that is not there.
        """
        if not query.strip():
            raise ValueError("query is empty: type what you are looking for")
        if settings.teacher not in self.teachers:
            raise ValueError(f"teacher must be one of {', '.join(self.teachers)}; got {settings.teacher!r}")
        judged = dict(judgements or {})
        grader = FeedbackGrader(lambda _: judged, self._teachers.get(settings.teacher))
        bundle = QueryBundle(query.strip())
        refinement = self._retriever(settings, grader).refine(bundle)
        plain = [entry.node for entry in refinement.nodes_before]
        first = plain[: settings.feedback_top_k]
        account = Account(self.retriever.budget)
        marks = self._grade(grader, bundle, first, account)
        reranked = [*sorted(first, key=lambda node: -marks.get(node.node_id, 0.0)), *plain[len(first) :]]
        marks |= refinement.grade_of
        rank = refinement.rank_before

        def results(nodes: Sequence[BaseNode]) -> list[Result]:
            return [
                Result(node, marks.get(node.node_id), rank.get(node.node_id), node.node_id in judged)
                for node in nodes[: settings.similarity_top_k]
            ]

        refined = [entry.node for entry in refinement.nodes]
        selection = self._selected(bundle, settings, grader) if refinement.refined else None
        return Comparison(results(plain), results(reranked), results(refined), refinement, selection, account)

    def _selected(self, query: QueryBundle, settings: Settings, grader: BaseGrader) -> Selection | None:
        """Say what belongs by the same grades, which the teachers' memories hold: nothing more is graded."""
        try:
            return self._retriever(settings, grader).select(query, budget=settings.feedback_top_k)
        except Exception as error:
            logger.warning("No cut is shown: %s: %s", type(error).__name__, error)
            return None

    def _retriever(self, settings: Settings, grader: BaseGrader) -> RefinedRetriever:
        ours = self.retriever
        retriever = RefinedRetriever(
            ours.vector_store,
            ours.embed_model,
            grader,
            similarity_top_k=max(DEPTH, settings.feedback_top_k, settings.similarity_top_k),
            feedback_top_k=settings.feedback_top_k,
            rounds=settings.rounds,
            budget=ours.budget,
        )
        # The same collection object, with its filters.
        retriever._collection = ours._collection
        return retriever

    def _grade(
        self, grader: BaseGrader, query: QueryBundle, nodes: Sequence[BaseNode], account: Account
    ) -> dict[str, float]:
        """Grade what a reranker on the same budget would: the first nodes of the plain search."""
        try:
            with account.active():
                grades = grader.grade(query, nodes)
        except Exception as error:
            logger.warning("Nothing is reranked: %s: %s", type(error).__name__, error)
            return {}
        return {node.node_id: grade for node, grade in zip(nodes, grades, strict=True) if grade is not None}
