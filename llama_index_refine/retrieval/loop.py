"""One query's way: search, grade, refine, search again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import GraderError, Grades, on_scale
from llama_index_refine.ids import same_id
from llama_index_refine.images.sources import is_inline
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Found, points_of
from llama_index_refine.qdrant.vectors import Vectors
from llama_index_refine.qdrant.views.base import Query, View
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.allocation import PLENTY, split_budget
from llama_index_refine.refining.trust import FixedTrust, Reliability
from llama_index_refine.retrieval.embedding import Embedding
from llama_index_refine.retrieval.examples import examples_of
from llama_index_refine.retrieval.feedback import Feedback, NotRefinedError
from llama_index_refine.retrieval.fusion import Ranking, admitted, fuse, fuse_ranked, levelled
from llama_index_refine.retrieval.grading import Grading, Sheet
from llama_index_refine.retrieval.lessons import Refining
from llama_index_refine.retrieval.moving import Moving, shaped
from llama_index_refine.retrieval.next_grades import Fruitless, spread_out, worth_grading
from llama_index_refine.retrieval.outcomes import billed
from llama_index_refine.retrieval.remembering import Recollection, Remembering
from llama_index_refine.similarity import score_of_similarity, similarity
from llama_index_refine.steps import Step, Steps

logger = logging.getLogger(__name__)

# How far down the refined ranking the documents of a later round may lie. Ids and scores of that many points are some
# 15 kB; results deeper down concern few users, and a handful of grades cannot chart them.
DEPTH = 300
# A document that moves by less, in nats, has not moved.
UNMOVED = 1e-3


@dataclass(frozen=True)
class FeedbackLoop:
    """Describes how a query is retrieved, as steps that a runner performs.

    :param collection: what is searched.
    :param embedding: embeds the query.
    :param grading: asks the teacher.
    :param refining: moves the query.
    :param similarity_top_k: the most nodes to return.
    :param feedback_top_k: the most nodes to grade, over all rounds.
    :param rounds: how many times to ask the teacher.
    :param early_stop: whether to leave the rest of the grades where they would hardly change what is returned.
    :param budget: the most that the grading may cost.
    :param on_error: whether what fails after the first search raises.
    :param trust: the teacher's record, or how far to follow it, in [0, 1].
    :param remembering: what past queries have to say.
    """

    collection: QdrantCollection
    embedding: Embedding
    grading: Grading
    refining: Refining
    similarity_top_k: int
    feedback_top_k: int
    rounds: int
    early_stop: bool
    budget: Budget
    on_error: Literal["fallback", "raise"]
    trust: Reliability | float
    remembering: Remembering

    def steps(self, query: QueryBundle, account: Account | None = None) -> Steps[Refinement]:
        """Retrieve for one query.

        :param query: the query.
        :param account: what pays for the grading, where more is to be graded afterwards; None for a new one.
        :return: the refinement; it says the `reason` where the first search had to stand.
        :raises ValueError: the query's vector does not fit the collection.
        """
        account = account or Account(self.budget)
        if _empty(query):
            return (yield from self._nothing(query))
        asked = yield from self._asked(query)
        # With a memory, the first round's grades are what tells whether similar queries may lend theirs.
        shares = split_budget(self.feedback_top_k, self.rounds, self._stops and self.remembering.memory is None)
        first, shown = yield from self.collection.search_first(asked, self.similarity_top_k, shares[0])
        # As it was searched: what fails later may be that the collection is gone.
        space = yield from self.collection.space()
        view = asked.view(space)
        feedback = Feedback(query, asked, view, account)
        before = [NodeWithScore(node=node, score=score) for node, score in zip(first.nodes, first.scores, strict=True)]
        try:
            refinement = yield from self._refined(feedback, first, shown, shares[1:])
        except Exception as error:
            asked_for = isinstance(error, GraderError) or self.on_error == "raise"
            if asked_for and not isinstance(error, NotRefinedError):
                raise
            refinement = Refinement.unmoved(view.row, query.query_str, before)
            refinement.reason = feedback.failed(error)
            logger.warning("Returning the first search's nodes, unrefined: %s", refinement.reason)
        last = feedback.sent if refinement.refined else None
        return replace(
            billed(shaped(refinement, feedback), account),
            vectors=(last or asked).vectors(space),
            query_str=query.query_str,
            image_path=query.image_path,
            image_folders=self.grading.grader().image_folders,
            nodes_before=before,
            grades=np.array(feedback.grades if refinement.refined else [], dtype=np.float32),
            graded_nodes=feedback.nodes,
            ungraded=len(feedback.shown) - len(feedback.ids),
            rounds=feedback.rounds,
            saved_grades=feedback.saved,
            remembered=len(feedback.recalled),
            borrowed=len(feedback.borrowed()),
        )

    def judge(self, query: QueryBundle, node_id: str, grade: float, user: str | None) -> Steps[None]:
        """Keep a person's judgement in the memory.

        :param query: the query.
        :param node_id: the node.
        :param grade: its relevance in [0, 1].
        :param user: who says so.
        :raises ValueError: an empty query, no grade, no memory, or a node that no search can find.
        """
        if _empty(query):
            raise ValueError("query is empty")
        if (judged := on_scale(grade)) is None:
            raise ValueError(f"grade must be in [0, 1], got {grade}")
        asked = yield from self._asked(query)
        yield from self.remembering.judge(query, asked, node_id, judged, user)

    @property
    def _moving(self) -> Moving:
        return Moving(self.refining, self.trust)

    def _asked(self, query: QueryBundle) -> Steps[Query]:
        """Put a query into what its first search is for."""
        embedding = query.embedding
        if embedding is None and (yield from self.collection.embeds()):
            embedding = yield Step("embed", self.embedding, query)
        asked = yield from self.collection.query(embedding, query)
        self.remembering.check(asked)
        return asked

    def _nothing(self, query: QueryBundle) -> Steps[Refinement]:
        space = yield from self.collection.space()
        refinement = Refinement.unmoved(np.zeros(space.size, dtype=np.float32), query.query_str, [])
        refinement.reason = "the query is empty"
        return refinement

    def _refined(self, feedback: Feedback, before: Found, shown: Found, shares: Sequence[int]) -> Steps[Refinement]:
        if len(shown.ids) < 2:
            raise NotRefinedError(f"the first search found {len(shown.ids)} nodes with a vector, and refining needs 2")
        feedback.doing = "drawing the background"
        background = yield from self._background(feedback.view)
        feedback.view.meet(shown.vectors, background)
        recollection = yield from self.remembering.recall(feedback, self.trust, background)
        settled = yield from self._first_round(feedback, recollection, shown, background)
        last = None if settled else (yield from self._later_rounds(feedback, background, shares))
        trust = self._moving.share(feedback)
        if last is not None and last.trust == trust:
            refinement = last.refinement
        else:
            refinement, last = (yield from self._moving.move(feedback, background, trust)), None
        feedback.doing = "the second search"
        query = feedback.sent = feedback.refined(refinement)
        if _stands(feedback, refinement, query):
            found = before
        else:
            found = yield from self._found(feedback, query, last)
        ranking = self._fused(feedback, refinement, query, _with_first(found, before, feedback, refinement))
        sources = [feedback.found(), before, found]
        wanted = [point for point, _ in ranking]
        nodes = yield from self.collection.nodes_of(wanted, query, sources)
        refinement.nodes = [NodeWithScore(node=nodes[point], score=score) for point, score in ranking if point in nodes]
        yield from self.remembering.remember(
            feedback, recollection, refinement, found, self._settled(feedback), self.trust
        )
        return refinement

    def _found(self, feedback: Feedback, query: Query, last: Fruitless | None) -> Steps[Found]:
        """Search for the refined query: beside the graded documents, which may all sink, as many as are returned."""
        limit, graded = self.similarity_top_k, feedback.ids
        # Where their scores or places count, or the ranking is kept, they must be among those found.
        counted = query.ranks or not feedback.view.lasts or feedback.view.ahead is not None
        kept = self.remembering.memory is not None
        # To a long list they add little, and a filter costs an index some of what it finds far down.
        few = 2 * len(graded) < limit
        if counted or kept or few or self.collection.options.score_threshold is not None:
            return (yield from self.collection.search(query, limit + len(graded)))
        if last is not None and len(last.ranking.nodes) >= limit and len(feedback.shown) == len(graded):
            # It was for this very query, and left out none but the graded ones.
            return last.ranking
        return (yield from self.collection.search(query, limit, at_hand=graded))

    def _first_round(
        self, feedback: Feedback, recollection: Recollection, shown: Found, background: Background | None
    ) -> Steps[bool]:
        """Grade what was shown, as far as nobody knows it yet. :return: whether the query was graded before."""
        yield from self._take_examples(feedback)
        yield from self.remembering.take(feedback, recollection)
        settled = recollection.settled(self.feedback_top_k)
        new = yield from self.remembering.new_among(feedback, recollection, shown, self.feedback_top_k, settled)
        shown = yield from self._with_judged(feedback, new)
        if shown.ids:
            yield from self._grade(feedback, shown)
        if len(feedback.grades) < 2 and not (background is not None and feedback.grades and not feedback.said()):
            why = "".join(f"; {failure}" for failure in feedback.account.failures)
            raise NotRefinedError(f"the teacher graded {len(feedback.grades)} of {len(shown.ids)} nodes, not 2{why}")
        if not settled:
            yield from self.remembering.borrow(feedback, recollection)
        return settled

    def _later_rounds(
        self, feedback: Feedback, background: Background | None, shares: Sequence[int]
    ) -> Steps[Fruitless | None]:
        """Grade what refined rankings bring up. :return: the last round, if there was nothing worth grading in it."""
        left = self.feedback_top_k - sum(shares) - feedback.asked
        for share in shares:
            # Judged nodes may have taken more than the first round's share, or it may have left some over.
            share, left = share + max(left, 0), 0
            share = min(share, self.feedback_top_k - feedback.asked - feedback.spared(self.feedback_top_k))
            if share < 1 or feedback.account.exhausted():
                break
            foreseen = self._moving.share(feedback, final=False) if self._may_stop(feedback.view) else None
            # Where no end is to be foreseen, what to ask next follows all that was heard.
            trust = 1.0 if foreseen is None else foreseen
            refinement = yield from self._moving.move(feedback, background, trust)
            try:
                fruitless = yield from self._another_round(feedback, refinement, share, foreseen, background)
            except Exception as error:
                if isinstance(error, GraderError) or self.on_error == "raise":
                    raise
                logger.warning("Going on with the grades so far: %s", feedback.failed(error))
                break
            if fruitless is not None:
                return Fruitless(refinement, trust, fruitless)
        return None

    def _settled(self, feedback: Feedback) -> int:
        """Return how many nodes the teacher might have graded: all it may, unless the budget ended before."""
        return feedback.asked if feedback.account.exhausted() else self.feedback_top_k

    def _fused(self, feedback: Feedback, refinement: Refinement, query: Query, found: Found) -> Ranking:
        graded, metric = feedback.found(), feedback.view.metric
        row, documents = np.asarray(refinement.vector), torch.as_tensor(refinement.documents)
        threshold = self.collection.options.score_threshold
        stay = admitted(found, graded, feedback.view.passes(row, documents, threshold))
        graded = replace(graded, ids=[graded.ids[at] for at in stay], nodes=[])
        own = similarity(torch.as_tensor(row), documents, metric)[stay]
        similarities = torch.as_tensor(refinement.fused)[stay]
        if query.ranks:
            return fuse_ranked(found, graded, (similarities - own) / refinement.tau, self.similarity_top_k)
        if not feedback.view.lasts:
            similarities = similarities - own + levelled(found, graded, own)
        return fuse(found, graded, similarities, metric, self.similarity_top_k, None if query.fuses else threshold)

    def _take_examples(self, feedback: Feedback) -> Steps[None]:
        """Take the query's own examples for graded, as far as the searches may find them."""
        examples = examples_of(feedback.query)
        points = [point for node_id in examples for point in points_of(node_id)]
        if not examples:
            return
        feedback.doing = "fetching the examples"
        found = Found.nothing()
        if points:
            found = yield from self.collection.fetch(points, feedback.first, len(points))
        if len(found.ids) < len(examples):
            missing = f"{len(examples) - len(found.ids)} of the examples cannot be found: gone, or outside the filter"
            feedback.account.note(missing)
            logger.warning("Going on without some examples: %s", missing)
        feedback.add(found, Grades([examples[same_id(node.node_id)] for node in found.nodes]), believed=1.0)

    def _with_judged(self, feedback: Feedback, shown: Found) -> Steps[Found]:
        """Put the nodes that people have judged, wherever they rank, in the place of the last others shown."""
        judged = {same_id(node_id): node_id for node_id in self.grading.grader().judged(feedback.query)}
        if not judged:
            return shown
        names = [same_id(node.node_id) for node in shown.nodes]
        others = [at for at, name in enumerate(names) if name not in judged]
        room = self.feedback_top_k - (len(names) - len(others))
        elsewhere = [node_id for name, node_id in judged.items() if name not in names]
        missing = [point for node_id in elsewhere for point in points_of(node_id) if point not in feedback.shown]
        if not missing or room < 1:
            return shown
        feedback.doing = "fetching what people have judged"
        found = yield from self.collection.fetch(missing, feedback.first, room)
        dropped = others[max(len(others) - len(found.ids), 0) :]
        return shown.at([at for at in range(len(shown.ids)) if at not in dropped]).beside(found)

    def _background(self, view: View) -> Steps[Background | None]:
        if not (
            self.collection.background_size and self.refining.refiner_for(view.metric, view.distance).wants_background
        ):
            return None
        background = yield from self.collection.background()
        return background

    def _grade(self, feedback: Feedback, shown: Found) -> Steps[None]:
        feedback.doing = "grading"
        self.collection.meets(any(map(is_inline, shown.nodes)))
        sheet = Sheet(feedback.query, shown.nodes, feedback.account)
        grades = yield Step("grade", self.grading, sheet)
        feedback.heard(shown, grades)
        if isinstance(self.trust, Reliability):
            self.trust.hear([grade for grade in grades if grade is not None])

    def _another_round(
        self,
        feedback: Feedback,
        refinement: Refinement,
        share: int,
        foreseen: float | None,
        background: Background | None,
    ) -> Steps[Found | None]:
        """Grade documents that the refined ranking brings up. :return: the ranking where none were worth it."""
        feedback.doing = "the ranking between rounds"
        may_stop = foreseen is not None
        plenty = not may_stop and float(refinement.grades.mean()) > PLENTY
        query = feedback.refined(refinement)
        # Where the ranking is deep, what it brings large, or places in it count, what is graded next is fetched alone.
        sparing = may_stop and (query.ranks or feedback.view.heavy)
        alone = (plenty or self.collection.inline or sparing) and self.collection.can_fetch
        wide = max(share, self.similarity_top_k) if may_stop else share
        if alone:
            deep = max(DEPTH if plenty else 0, wide + len(feedback.shown))
            ranking = yield from self.collection.rank(query, deep)
        else:
            ranking = yield from self.collection.search_next(query, wide, feedback.shown)
        new = [at for at, point in enumerate(ranking.ids) if point not in feedback.shown]
        wanted = new[:share]
        if foreseen is not None:
            population = len(ranking.ids) if background is None else background.population
            wanted = self._worth_grading(feedback, refinement, query, ranking, new, share, foreseen, population)
            feedback.saved = self.feedback_top_k - feedback.asked - len(wanted)
        elif alone and plenty:
            wanted = spread_out(feedback, refinement, ranking, new, share, query.ranks)
        if not wanted:
            return ranking
        shown = (yield from self._fetched(feedback, query, ranking, wanted)) if alone else ranking.at(wanted)
        if not shown.ids:
            return ranking
        yield from self._grade(feedback, shown)
        return None

    def _fetched(self, feedback: Feedback, query: Query, ranking: Found, wanted: Sequence[int]) -> Steps[Found]:
        feedback.doing = "fetching what is graded next"
        ids = [ranking.ids[at] for at in wanted]
        shown = yield from self.collection.fetch(ids, query, len(ids))
        score = dict(zip(ranking.ids, ranking.scores, strict=True))
        return replace(shown, scores=[score[point] for point in shown.ids])

    @property
    def _stops(self) -> bool:
        """Whether it can be told when more grades change nothing: of a list no longer than what may be graded."""
        if isinstance(self.trust, Reliability) and not self.trust.known():
            # What it grades tells of itself too, for all queries to come, and a few grades tell little.
            return False
        told = self.collection.can_fetch or self.collection.options.hybrid is None
        return self.early_stop and self.similarity_top_k <= self.feedback_top_k and told

    def _may_stop(self, view: View) -> bool:
        return self._stops and self.refining.refiner_for(view.metric, view.distance).own_grade > 0

    def _worth_grading(
        self,
        feedback: Feedback,
        refinement: Refinement,
        query: Query,
        ranking: Found,
        new: Sequence[int],
        count: int,
        trust: float,
        population: int,
    ) -> list[int]:
        left, view = self.feedback_top_k - feedback.asked, feedback.view
        own_grade = self.refining.refiner_for(view.metric, view.distance).own_grade
        step = own_grade * trust**2
        record = self.trust if isinstance(self.trust, Reliability) else FixedTrust(self.trust)
        limit = self.similarity_top_k
        return worth_grading(
            feedback, refinement, ranking, new, left, count, step, limit, query.ranks, population, record
        )


def _with_first(found: Found, before: Found, feedback: Feedback, refinement: Refinement) -> Found:
    """Add what the first search found: an index that is not exact may miss it, near as it is to the refined query.

    :param found: what the second search found.
    :param before: what the first did; it is compared where it came with vectors, which are dense ones.
    :param feedback: what was graded.
    :param refinement: how the query moved.
    :return: ids and scores of both.
    """
    view, known = feedback.view, {*found.ids, *feedback.ids}
    missed = [at for at, point in enumerate(before.ids) if point not in known]
    if not missed or not len(before.vectors):
        return found
    row, (rows,) = torch.as_tensor(np.asarray(refinement.vector)), view.rows(before.vectors.at(missed))
    scores = score_of_similarity(similarity(row, rows, view.metric), view.metric).tolist()
    return Found([*found.ids, *[before.ids[at] for at in missed]], [*found.scores, *scores], [], Vectors.none())


def _stands(feedback: Feedback, refinement: Refinement, query: Query) -> bool:
    """Say whether neither the query nor any graded document has moved, so that the first search stands."""
    row, documents = torch.as_tensor(refinement.vector), torch.as_tensor(refinement.documents)
    moved = torch.as_tensor(refinement.fused) - similarity(row, documents, feedback.view.metric)
    return query is feedback.first and bool((moved.abs() <= UNMOVED * refinement.tau).all())


def _empty(query: QueryBundle) -> bool:
    given = query.embedding is not None or query.image_path
    return not given and not any(text.strip() for text in query.embedding_strs)
