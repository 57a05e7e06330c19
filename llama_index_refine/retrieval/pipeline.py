"""One query's way: embed, search, grade, refine, search again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import BaseGrader, GraderError, on_scale
from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Found, PointId, Vectors
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.allocation import split_budget
from llama_index_refine.refining.trust import Teacher
from llama_index_refine.retrieval.chances import Chances, answerable
from llama_index_refine.retrieval.embedding import Embedding
from llama_index_refine.retrieval.feedback import Feedback, NotRefinedError
from llama_index_refine.retrieval.grading import Grading, ask_teacher, take_examples, with_judged
from llama_index_refine.retrieval.moving import Refining, learn_of, move, written
from llama_index_refine.retrieval.next_grades import NextGrades
from llama_index_refine.retrieval.placing import place, unmoved
from llama_index_refine.retrieval.remembering import Remembering
from llama_index_refine.scheduling import perform

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """Retrieves for one query at a time, or for many side by side.

    :param collection: what is searched.
    :param embedding: embeds the query.
    :param grader: the teacher.
    :param grading: asks it.
    :param teacher: what is known of it.
    :param refining: moves the query.
    :param remembering: what past queries have to say.
    :param similarity_top_k: the most nodes to return.
    :param feedback_top_k: the most nodes to grade, over all rounds.
    :param rounds: how many times to ask the teacher.
    :param early_stop: whether to leave the rest of the grades where they would hardly change what is returned.
    :param budget: the most that the grading may cost.
    :param on_error: whether what fails after the first search raises.
    """

    collection: QdrantCollection
    embedding: Embedding
    grader: BaseGrader
    grading: Grading
    teacher: Teacher
    refining: Refining
    remembering: Remembering
    similarity_top_k: int
    feedback_top_k: int
    rounds: int
    early_stop: bool
    budget: Budget
    on_error: Literal["fallback", "raise"]

    async def retrieve(self, query: QueryBundle, account: Account | None = None) -> Refinement:
        """Retrieve for one query.

        :param query: the query.
        :param account: what pays for the grading, where others pay by it too; None for a new one.
        :return: the refinement; it says the `reason` where the first search had to stand.
        :raises ValueError: the query's vector does not fit the collection.
        """
        return (await self.explore(query, account))[0]

    async def explore(self, query: QueryBundle, account: Account | None = None) -> tuple[Refinement, Feedback | None]:
        """Retrieve, and hand over what was graded, for whoever goes on grading. See `retrieve`.

        :return: the refinement and the feedback, None where the query is empty.
        """
        if is_empty(query):
            return await self._nothing(query), None
        asked = await self.asked(query)
        shares = split_budget(self.feedback_top_k, self.rounds)
        found = await self.collection.search(asked, max(self.similarity_top_k, shares[0]), vectors=shares[0])
        found = await self.collection.complete(found, asked)
        space = await self.collection.space()
        account, grouping = account or Account(self.budget), self.collection.options.grouping
        feedback = Feedback(query, asked, asked.view(space), account, grouping)
        before = entries(found, self.similarity_top_k)
        try:
            refinement, searched = await self._refined(feedback, found, shares)
        except Exception as error:
            asked_for = isinstance(error, GraderError) or self.on_error == "raise"
            if asked_for and not isinstance(error, NotRefinedError):
                raise
            refinement, searched = Refinement.unmoved(feedback.view.row, query.query_str, before), asked
            refinement.reason = feedback.failed(error)
            logger.warning("Returning the first search's nodes, unrefined: %s", refinement.reason)
        return self._told(written(refinement, feedback), feedback, before, searched.vectors(space)), feedback

    async def judge(self, query: QueryBundle, node_id: str, grade: float, user: str | None) -> None:
        """Keep a person's judgement in the memory.

        :param query: the query.
        :param node_id: the node.
        :param grade: its relevance in [0, 1].
        :param user: who says so.
        :raises ValueError: an empty query, no grade, no memory, or a node that no search can find.
        """
        if is_empty(query):
            raise ValueError("query is empty")
        if (judged := on_scale(grade)) is None:
            raise ValueError(f"grade must be in [0, 1], got {grade}")
        await self.remembering.judge(query, await self.asked(query), node_id, judged, user)

    async def asked(self, query: QueryBundle) -> Query:
        """Put a query into what its first search is for."""
        embedding = query.embedding
        if embedding is None and await self.collection.embeds():
            embedding = await perform("embed", self.embedding, query)
        asked = await self.collection.query(embedding, query)
        self.remembering.check(asked)
        return asked

    async def _refined(self, feedback: Feedback, before: Found, shares: Sequence[int]) -> tuple[Refinement, Query]:
        shown = before.with_vectors(shares[0])
        if len(shown.ids) < 2:
            raise NotRefinedError(f"the first search found {len(shown.ids)} nodes with a vector, and refining needs 2")
        background = await self._background(feedback)
        feedback.view.meet(shown.vectors, background)
        feedback.meet(before)
        await take_examples(self.collection, feedback)
        recollection = await self.remembering.recall(feedback, self.teacher, background)
        await self._first_round(feedback, shown, background)
        await self.remembering.lend(feedback, recollection)
        refinement, query, found = await self._later_rounds(feedback, shares, background)
        learn_of(self.teacher, feedback)
        if unmoved(feedback, refinement, query):
            found = before
        ranking = place(feedback, refinement, query, found, before, self._candidates)
        ranking = await self.collection.diverse(ranking, self.similarity_top_k)
        if before.ids and not ranking:
            raise NotRefinedError("no node reaches score_threshold for the refined query: lower it")
        refinement.nodes = await self._nodes(feedback, query, ranking, [before, found])
        returned = [point for point, _ in ranking]
        population = background.population if background else len(feedback.shown)
        chances = Chances.of(feedback, refinement, query, found, population, self.teacher)
        refinement.answerable = answerable(chances, feedback, found, returned)
        await self.remembering.remember(feedback, recollection, before, found, self.teacher)
        return refinement, query

    async def _background(self, feedback: Feedback) -> Background | None:
        feedback.doing = "drawing the background"
        wanted = self.refining.refiner_for(feedback.view.metric, feedback.view.distance).wants_background
        return await self.collection.background() if wanted and self.collection.background_size else None

    async def _first_round(self, feedback: Feedback, shown: Found, background: Background | None) -> None:
        """Grade what the first search found at the top, as far as nobody knows it yet."""
        new = feedback.new(shown)[: self.feedback_top_k - feedback.asked]
        shown = await self.collection.complete(shown.at(new), feedback.first, vectors=True)
        judged = self.grader.judged(feedback.query)
        shown = await with_judged(self.collection, judged, feedback, shown, self.feedback_top_k)
        await ask_teacher(self.grading, self.teacher, feedback, shown)
        one_is_enough = background is not None and feedback.grades and not feedback.said()
        if len(feedback.grades) < 2 and not one_is_enough:
            why = "".join(f"; {failure}" for failure in feedback.account.failures)
            raise NotRefinedError(
                f"the teacher graded {len(feedback.grades)} of {len(shown.ids)} nodes, and refining needs 2{why}"
            )

    async def _later_rounds(
        self, feedback: Feedback, shares: Sequence[int], background: Background | None
    ) -> tuple[Refinement, Query, Found]:
        """Refine and search, and grade what that brings up, until there is nothing left that is worth a grade."""
        planned = shares[0]
        for share in (*shares[1:], 0):
            planned += share
            left = feedback.left(self.feedback_top_k)
            count = min(max(share, planned - feedback.asked), left) if share else 0
            refinement = await move(self.refining, self.teacher, feedback, background)
            query = feedback.view.refined(np.asarray(refinement.vector), feedback.ahead)
            refiner = self.refining.refiner_for(feedback.view.metric, feedback.view.distance)
            following = NextGrades(
                feedback,
                refinement,
                query,
                count,
                self.similarity_top_k,
                background.population if background else len(feedback.shown),
                self.teacher,
                refiner.own_grade * feedback.trust**2 if self._all_may_be_graded else None,
                self._may_save and refiner.own_grade > 0,
            )
            feedback.doing = "the ranking between rounds" if count else "the second search"
            try:
                vectors = following.depth if count else 0
                depth = following.depth + self._candidates - self.similarity_top_k
                found = await self.collection.search(query, depth, vectors=vectors, beside=feedback.ids)
                feedback.meet(found)
                chosen = following.choose(found)
                await self._show(feedback, query, found.at(chosen))
            except Exception as error:
                if not count or isinstance(error, GraderError) or self.on_error == "raise":
                    raise
                logger.warning("Going on with the grades so far: %s", feedback.failed(error))
                feedback.over = True
                continue
            feedback.saved = feedback.spare(self.feedback_top_k) if following.spares else feedback.saved
            if not chosen and following.depth >= self.similarity_top_k:
                break
        return refinement, query, found

    async def _show(self, feedback: Feedback, query: Query, chosen: Found) -> None:
        """Have documents graded, as far as they have a vector by which to refine."""
        feedback.doing = "fetching what is graded next"
        whole = await self.collection.complete(chosen, query, vectors=True)
        shown = whole.with_vectors()
        feedback.passed.update(same_id(point) for point in {*whole.ids} - {*shown.ids})
        await ask_teacher(self.grading, self.teacher, feedback, shown)

    @property
    def _candidates(self) -> int:
        """How many nodes are placed for those to be chosen of them that are returned."""
        return self.collection.options.candidates(self.similarity_top_k)

    @property
    def _may_save(self) -> bool:
        """Whether grades that are not worth their call are left out.

        Not those of a new teacher: they tell of it too, for all queries to come, and a few grades tell little.
        """
        return self.early_stop and self._all_may_be_graded and self.teacher.known()

    @property
    def _all_may_be_graded(self) -> bool:
        """Whether the list is no longer than what may be graded: then it can be told what a grade changes in it."""
        return self.similarity_top_k <= self.feedback_top_k

    async def _nodes(
        self, feedback: Feedback, query: Query, ranking: Sequence[tuple[PointId, float]], lists: Sequence[Found]
    ) -> list[NodeWithScore]:
        """Return the nodes of a ranking: those at hand, and the others fetched, as far as they are still there."""
        nodes = {point: entry.node for point, entry in zip(feedback.ids, feedback.nodes, strict=True)}
        wanted = {point for point, _ in ranking}
        for found in lists:
            if len(found.nodes):
                nodes |= {point: found.nodes[at] for at, point in enumerate(found.ids) if point in wanted - {*nodes}}
        missing = [point for point, _ in ranking if point not in nodes]
        fetched = await self.collection.complete(Found(missing, [0.0] * len(missing), [], Vectors.none()), query)
        nodes |= zip(fetched.ids, fetched.nodes, strict=True)
        return [NodeWithScore(node=nodes[point], score=score) for point, score in ranking if point in nodes]

    async def _nothing(self, query: QueryBundle) -> Refinement:
        space = await self.collection.space()
        refinement = Refinement.unmoved(np.zeros(space.size, dtype=np.float32), query.query_str, [])
        refinement.reason = "the query is empty"
        return refinement

    def _told(
        self, refinement: Refinement, feedback: Feedback, before: list[NodeWithScore], vectors: dict[str, Any]
    ) -> Refinement:
        """Write into a refinement what was found, graded and paid."""
        return replace(
            refinement,
            vectors=vectors,
            query_str=feedback.query.query_str,
            image_path=feedback.query.image_path,
            image_folders=self.grader.image_folders,
            nodes_before=before,
            grades=np.array(feedback.grades if refinement.refined else [], dtype=np.float32),
            graded_nodes=feedback.nodes,
            ungraded=len(feedback.shown) - len(feedback.ids),
            rounds=feedback.rounds,
            saved_grades=feedback.saved,
            remembered=len(feedback.recalled),
            borrowed=len(feedback.borrowed()),
            failures=tuple(feedback.account.failures),
            **feedback.account.bill(),
        )


def is_empty(query: QueryBundle) -> bool:
    """Say whether a query brings nothing to search for."""
    given = query.embedding is not None or query.image_path
    return not given and not any(text.strip() for text in query.embedding_strs)


def entries(found: Found, limit: int) -> list[NodeWithScore]:
    """Return the first nodes of a search, with its scores."""
    return [NodeWithScore(node=found.nodes[at], score=found.scores[at]) for at in range(min(limit, len(found.ids)))]
