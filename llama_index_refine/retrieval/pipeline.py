"""One query's way: embed, search, grade, refine, search again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import GraderError, Grades, on_scale
from llama_index_refine.ids import same_id
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Found, PointId
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.base import BaseRefiner
from llama_index_refine.refining.trust import Teacher
from llama_index_refine.retrieval.feedback import Feedback, NotRefinedError
from llama_index_refine.retrieval.grading import Grading, Sheet, take_examples, with_judged
from llama_index_refine.retrieval.moving import Refining, as_matrices, heard, move
from llama_index_refine.retrieval.queries import Embedding, QueryWithExamples
from llama_index_refine.retrieval.ranking import RefinedRanking
from llama_index_refine.retrieval.remembering import NO_MEMORY, Remembering
from llama_index_refine.scheduling import perform

logger = logging.getLogger(__name__)

# How far down the refined ranking is looked. Ids and scores of that many points are some 15 kB; results deeper down
# concern few users, and a handful of grades cannot chart them.
DEPTH = 300


@dataclass(frozen=True)
class Pipeline:
    """Retrieves for one query at a time, or for many side by side.

    :param collection: what is searched.
    :param embedding: embeds the query.
    :param grading: asks the teacher.
    :param teacher: what is known of it.
    :param refining: moves the query.
    :param remembering: what past queries have to say, None without a memory.
    :param similarity_top_k: the most nodes to return.
    :param helped_top_k: how many of the first nodes the grades are to help: those that are returned, or more where the
        ranking is cut later.
    :param feedback_top_k: the most nodes to grade, over all rounds.
    :param rounds: how many times to ask the teacher.
    :param early_stop: whether to leave the rest of the grades where they would hardly change what is returned.
    :param budget: the most that the grading may cost.
    :param on_error: whether what fails after the first search raises.
    """

    collection: QdrantCollection
    embedding: Embedding
    grading: Grading
    teacher: Teacher
    refining: Refining
    remembering: Remembering | None
    similarity_top_k: int
    helped_top_k: int
    feedback_top_k: int
    rounds: int
    early_stop: bool
    budget: Budget
    on_error: Literal["fallback", "raise"]

    async def retrieve(self, query: QueryBundle, account: Account | None = None) -> tuple[Refinement, Feedback | None]:
        """Retrieve for one query.

        :param query: the query.
        :param account: what pays for the grading, where others pay by it too; None for a new one.
        :return: the refinement, which says the `reason` where the first search had to stand; and for whoever goes on
            grading what was graded, None where the query is empty.
        :raises ValueError: the query's vector does not fit the collection.
        """
        if is_empty(query):
            nowhere = np.zeros((await self.collection.space()).size, dtype=np.float32)
            return replace(Refinement.unmoved(nowhere, query.query_str, []), reason="the query is empty"), None
        asked = await self.asked(query)
        shares = split_budget(self.feedback_top_k, self.rounds if self.teacher.decides() else 1)
        found = await self.collection.search(asked, max(self.similarity_top_k, shares[0]), vectors=shares[0])
        found = await self.collection.complete(found)
        space = await self.collection.space()
        account, grouping = account or Account(self.budget), self.collection.options.grouping
        feedback = Feedback(query, asked, asked.view(space), account, grouping)
        first = range(min(self.similarity_top_k, len(found.ids)))
        before = [NodeWithScore(node=found.nodes[at], score=found.scores[at]) for at in first]
        try:
            refinement, searched = await self._refined(feedback, found, shares)
        except Exception as error:
            asked_for = isinstance(error, GraderError) or self.on_error == "raise"
            if asked_for and not isinstance(error, NotRefinedError):
                raise
            refinement, searched = Refinement.unmoved(feedback.view.row, query.query_str, before), asked
            refinement.reason = feedback.failed(error)
            logger.warning("Returning the first search's nodes, unrefined: %s", refinement.reason)
        return self._told(refinement, feedback, before, searched.vectors(space)), feedback

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
        if self.remembering is None:
            raise ValueError("memory is None: give the retriever a RefinementMemory to keep judgements in")
        await self.remembering.judge(query, await self.asked(query), node_id, judged, user)

    async def asked(self, query: QueryBundle) -> Query:
        """Put a query into what its first search is for.

        :param query: the query.
        :return: what is searched for.
        :raises ValueError: it does not fit the collection, or there is a memory, which needs a dense vector.
        """
        asked = await self.collection.query(query, self.embedding)
        if self.remembering is not None and asked.dense is None:
            raise ValueError(NO_MEMORY)
        return asked

    async def _refined(self, feedback: Feedback, before: Found, shares: Sequence[int]) -> tuple[Refinement, Query]:
        feedback.meet(before)
        shown = before.with_vectors(shares[0])
        if len(shown.ids) < 2:
            raise NotRefinedError(f"the first search found {len(shown.ids)} nodes with a vector, and refining needs 2")
        feedback.doing, background = "drawing the background", None
        refiner = self.refining.refiner_for(feedback.view.metric, feedback.view.distance)
        if refiner.wants_background and self.collection.background_size:
            background = await self.collection.background()
        feedback.view.meet(shown.vectors, background)
        if isinstance(feedback.query, QueryWithExamples):
            await take_examples(self.collection, feedback, feedback.query.judgements)
        memory, recollection = self.remembering, None
        if memory is not None:
            recollection = await memory.recall(feedback, self.teacher, background)
        await self._first_round(feedback, shown, background)
        if memory is not None and recollection is not None:
            await memory.lend(feedback, recollection)
        ranking = await self._later_rounds(feedback, shares, background, refiner)
        refinement, query = ranking.refinement, ranking.query
        if query is feedback.first and ranking.unmoved():
            ranking = replace(ranking, found=before)
        placed = ranking.place(before, self.collection.candidates * self.similarity_top_k)
        if (mmr_threshold := self.collection.options.mmr_threshold) is not None:
            placed = await self.collection.diverse(placed, mmr_threshold, self.similarity_top_k)
        if before.ids and not placed:
            raise NotRefinedError("no node reaches score_threshold for the refined query: lower it")
        refinement.nodes = await self._nodes(feedback, placed, [before, ranking.found])
        refinement.answerable = ranking.answerable([point for point, _ in placed])
        refinement.grades = np.array(feedback.grades, dtype=np.float32)
        if memory is not None and recollection is not None:
            await memory.remember(feedback, recollection, before, ranking.found, self.teacher)
        return refinement, query

    async def _first_round(self, feedback: Feedback, shown: Found, background: Background | None) -> None:
        """Grade what the first search found at the top, as far as nobody knows it yet."""
        shown = shown.at(feedback.new(shown)[: self.feedback_top_k - feedback.asked])
        feedback.doing = "looking up what people have judged"
        if judged := self.grading.grader.judged(feedback.query):
            shown = await self.collection.complete(shown, vectors=True)
            shown = await with_judged(self.collection, judged, feedback, shown, self.feedback_top_k)
        shown = await self._ask(feedback, shown)
        one_is_enough = background is not None and feedback.grades and not feedback.said()
        if len(feedback.grades) < 2 and not one_is_enough:
            why = "".join(f"; {failure}" for failure in feedback.account.failures)
            raise NotRefinedError(
                f"the teacher graded {len(feedback.grades)} of {len(shown.ids)} nodes, and refining needs 2{why}"
            )

    async def _later_rounds(
        self, feedback: Feedback, shares: Sequence[int], background: Background | None, refiner: BaseRefiner
    ) -> RefinedRanking:
        """Refine and search, and grade what that brings up, until there is nothing left that is worth a grade."""
        # Where the list is no longer than what may be graded, it can be told what a grade changes in it.
        limit, weighs = self.helped_top_k, self.helped_top_k <= self.feedback_top_k
        planned = shares[0]
        for share in (*shares[1:], 0):
            planned += share
            left = feedback.left(self.feedback_top_k) if share else 0
            count = min(max(share, planned - feedback.asked), left)
            refinement = await move(self.refining, self.teacher, feedback, background)
            query = feedback.view.refined(np.asarray(refinement.vector), feedback.ahead)
            population = background.population if background else len(feedback.shown)
            own_grade = refiner.own_grade * feedback.trust**2 * feedback.certainty if weighs else None
            chooses, depth = count > 0 and not feedback.settled, limit
            if chooses:
                depth = max(count, min(limit, DEPTH)) + len(feedback.shown) - len(feedback.ids)
            # Not those of a new teacher: they tell of it too, for all queries to come, and a few grades tell little.
            saves = chooses and weighs and self.early_stop and refiner.own_grade > 0 and self.teacher.known()
            feedback.doing = "the ranking between rounds" if count else "the second search"
            try:
                deepest = depth + (self.collection.candidates - 1) * limit
                vectors = depth if count else 0
                found = await self.collection.search(query, deepest, vectors=vectors, beside=feedback.ids)
                feedback.meet(found)
                ranking = RefinedRanking(feedback, refinement, query, found, population, self.teacher)
                chosen = ranking.choose(count, depth, limit, own_grade, saves)
                if chosen:
                    await self._ask(feedback, found.at(chosen))
            except Exception as error:
                if not count or isinstance(error, GraderError) or self.on_error == "raise":
                    raise
                logger.warning("Going on with the grades so far: %s", feedback.failed(error))
                feedback.over = True
                continue
            if saves:
                feedback.saved = feedback.spare(self.feedback_top_k)
            if not chosen and depth >= limit:
                break
        # All grades are in: what they say of the teacher is taken in, once.
        if places := heard(self.teacher, feedback):
            self.teacher.observe(*feedback.evidence(places))
        return ranking

    async def _ask(self, feedback: Feedback, chosen: Found) -> Found:
        """Have documents graded, as far as they have a vector by which to refine. :return: what the teacher saw."""
        feedback.doing = "fetching what is graded next"
        whole = await self.collection.complete(chosen, vectors=True)
        shown = whole.with_vectors()
        feedback.passed.update(same_id(point) for point in {*whole.ids} - {*shown.ids})
        if shown.ids:
            feedback.doing = "grading"
            grades: Grades = await perform("grade", self.grading, Sheet(feedback.query, shown.nodes, feedback.account))
            feedback.rounds += 1
            feedback.asked += len(shown.ids)
            feedback.take(shown, grades)
        return shown

    async def _nodes(
        self, feedback: Feedback, ranking: Sequence[tuple[PointId, float]], lists: Sequence[Found]
    ) -> list[NodeWithScore]:
        """Return the nodes of a ranking: those at hand, and the others fetched, as far as they are still there."""
        nodes = {point: entry.node for point, entry in zip(feedback.ids, feedback.nodes, strict=True)}
        wanted = {point for point, _ in ranking}
        for found in lists:
            if len(found.nodes):
                lacking = wanted - {*nodes}
                nodes |= {point: found.nodes[at] for at, point in enumerate(found.ids) if point in lacking}
        if missing := [point for point, _ in ranking if point not in nodes]:
            fetched = await self.collection.complete(Found(missing, [0.0] * len(missing)))
            nodes |= zip(fetched.ids, fetched.nodes, strict=True)
        return [NodeWithScore(node=nodes[point], score=score) for point, score in ranking if point in nodes]

    def _told(
        self, refinement: Refinement, feedback: Feedback, before: list[NodeWithScore], vectors: dict[str, Any]
    ) -> Refinement:
        """Write into a refinement what was found, graded and paid; and its rows as what they are."""
        view, widest = feedback.view, max(map(len, feedback.path), default=0)
        told = replace(
            refinement,
            # A row over few terms is 0 in those that were met later.
            path=[row if len(row) == widest else np.pad(row, (0, widest - len(row))) for row in feedback.path],
            metric=view.metric,
            vectors=vectors,
            query_str=feedback.query.query_str,
            image_path=feedback.query.image_path,
            image_folders=self.grading.grader.image_folders,
            nodes_before=before,
            graded_nodes=feedback.nodes,
            ungraded=len(feedback.shown) - len(feedback.ids),
            rounds=feedback.rounds,
            saved_grades=feedback.saved,
            remembered=len(feedback.recalled),
            borrowed=len(feedback.loans),
            failures=tuple(feedback.account.failures),
            **feedback.account.bill(),
        )
        return told if view.shape is None else as_matrices(told, view)


def is_empty(query: QueryBundle) -> bool:
    """Say whether a query brings nothing to search for."""
    given = query.embedding is not None or query.image_path
    return not given and not any(text.strip() for text in query.embedding_strs)


def split_budget(feedback_top_k: int, rounds: int) -> list[int]:
    """Share the documents that may be graded out among the rounds: the first one gets half, the others the rest.

    :param feedback_top_k: the most documents to grade, at least 2.
    :param rounds: the most rounds, at least 1.
    :return: documents to grade in each round, at least 2, since one grade has no other to differ from.
    """
    later = min(rounds, feedback_top_k // 2) - 1
    if not later:
        return [feedback_top_k]
    first = min((feedback_top_k + 1) // 2, feedback_top_k - 2 * later)
    share, rest = divmod(feedback_top_k - first, later)
    return [first, *(share + (at < rest) for at in range(later))]
