"""One query's way: search, grade, refine, search again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from llama_index.core.schema import NodeWithScore, QueryBundle
from numpy.typing import NDArray

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import GraderError, Grades, on_scale
from llama_index_refine.ids import same_id
from llama_index_refine.images.sources import is_inline
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Found, points_of
from llama_index_refine.qdrant.space import Space
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.allocation import PLENTY, split_budget
from llama_index_refine.refining.base import TYPICAL_SIGNAL
from llama_index_refine.refining.stopping import SETTLED
from llama_index_refine.refining.trust import Reliability, shrink
from llama_index_refine.retrieval.embedding import Embedding
from llama_index_refine.retrieval.examples import examples_of
from llama_index_refine.retrieval.feedback import Feedback, NotRefinedError
from llama_index_refine.retrieval.fusion import Ranking, admitted, fuse, fuse_ranked
from llama_index_refine.retrieval.grading import Grading, Sheet
from llama_index_refine.retrieval.lessons import Lesson, Refining
from llama_index_refine.retrieval.next_grades import gain_of, spread_out
from llama_index_refine.retrieval.outcomes import billed
from llama_index_refine.retrieval.remembering import Recollection, Remembering, within
from llama_index_refine.similarity import similarity
from llama_index_refine.steps import Step, Steps

logger = logging.getLogger(__name__)

# How far down the refined ranking the documents of a later round may lie. Ids and scores of that many points are some
# 15 kB; results deeper down concern few users, and a handful of grades cannot chart them.
DEPTH = 300


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
        vector = yield from self._embedded(query)
        words = yield from self.collection.words(query.query_str)
        shares = split_budget(self.feedback_top_k, self.rounds)
        first, shown = yield from self.collection.search_first(vector, self.similarity_top_k, shares[0], **words)
        space = yield from self.collection.space()
        feedback = Feedback(query, vector, account, words)
        before = [NodeWithScore(node=node, score=score) for node, score in zip(first.nodes, first.scores, strict=True)]
        try:
            refinement = yield from self._refined(feedback, first, shown, shares[1:], space)
        except Exception as error:
            asked_for = isinstance(error, GraderError) or self.on_error == "raise"
            if asked_for and not isinstance(error, NotRefinedError):
                raise
            refinement = Refinement.unmoved(vector, query.query_str, before)
            refinement.reason = feedback.failed(error)
            logger.warning("Returning the first search's nodes, unrefined: %s", refinement.reason)
        return replace(
            billed(refinement, account),
            query_str=query.query_str,
            image_path=query.image_path,
            image_folders=self.grading.grader().image_folders,
            nodes_before=before,
            path=feedback.path,
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
        vector = yield from self._embedded(query)
        space = yield from self.collection.space()
        yield from self.remembering.judge(query, vector, space, node_id, judged, user)

    def _embedded(self, query: QueryBundle) -> Steps[np.ndarray]:
        embedding = query.embedding
        if embedding is None:
            embedding = yield Step("embed", self.embedding, query)
        vector = np.asarray(embedding, dtype=np.float32)
        if not np.isfinite(vector).all():
            raise ValueError("the query's embedding holds NaN or infinity")
        yield from self.collection.space_for(vector)
        return vector

    def _nothing(self, query: QueryBundle) -> Steps[Refinement]:
        space = yield from self.collection.space()
        refinement = Refinement.unmoved(np.zeros(space.size, dtype=np.float32), query.query_str, [])
        refinement.reason = "the query is empty"
        return refinement

    def _refined(
        self, feedback: Feedback, before: Found, shown: Found, shares: Sequence[int], space: Space
    ) -> Steps[Refinement]:
        if len(shown.ids) < 2:
            raise NotRefinedError(f"the first search found {len(shown.ids)} nodes with a vector, and refining needs 2")
        feedback.doing = "drawing the background"
        background = yield from self._background(space)
        recollection = yield from self.remembering.recall(feedback, space, self.trust, background)
        settled = yield from self._first_round(feedback, recollection, shown, background)
        left = self.feedback_top_k - sum(shares) - feedback.asked
        for share in [] if settled else shares:
            # Judged nodes may have taken more than the first round's share, or it may have left some over.
            share, left = share + max(left, 0), 0
            share = min(share, self.feedback_top_k - feedback.asked - feedback.spared(self.feedback_top_k))
            if share < 1 or feedback.account.exhausted():
                break
            # What to ask next follows all that was heard; how far to go by it is decided at the end.
            refinement = yield from self._move(feedback, background, space, trust=1.0)
            try:
                more = yield from self._another_round(feedback, refinement, share, space)
            except Exception as error:
                if isinstance(error, GraderError) or self.on_error == "raise":
                    raise
                logger.warning("Going on with the grades so far: %s", feedback.failed(error))
                break
            if not more:
                break
        refinement = yield from self._move(feedback, background, space, self._trust(feedback, space))
        limit = self.similarity_top_k
        feedback.doing = "the second search"
        # Every graded document may sink below the last one returned; as many must be at hand to take its place.
        found = yield from self.collection.search(refinement.vector, limit + len(feedback.ids), **feedback.words)
        ranking = self._fused(feedback, refinement, found, space)
        sources = [feedback.found(), before, found]
        wanted = [point for point, _ in ranking]
        nodes = yield from self.collection.nodes_of(wanted, refinement.vector, sources, **feedback.words)
        refinement.nodes = [NodeWithScore(node=nodes[point], score=score) for point, score in ranking if point in nodes]
        yield from self.remembering.remember(
            feedback, recollection, refinement, found, self._settled(feedback), self.trust
        )
        return refinement

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

    def _settled(self, feedback: Feedback) -> int:
        """Return how many nodes the teacher might have graded: all it may, unless the budget ended before."""
        return feedback.asked if feedback.account.exhausted() else self.feedback_top_k

    def _fused(self, feedback: Feedback, refinement: Refinement, found: Found, space: Space) -> Ranking:
        graded = feedback.found()
        own = similarity(torch.as_tensor(refinement.vector), torch.as_tensor(refinement.documents), space.metric)
        threshold = self.collection.options.score_threshold
        stay = admitted(found, graded, own, space.metric, threshold)
        graded = replace(graded, ids=[graded.ids[at] for at in stay], nodes=[])
        similarities = torch.as_tensor(refinement.fused)[stay]
        if feedback.words:
            gains = (similarities - own[stay]) / refinement.tau
            return fuse_ranked(found, graded, gains, self.similarity_top_k)
        return fuse(found, graded, similarities, space.metric, self.similarity_top_k, threshold)

    def _take_examples(self, feedback: Feedback) -> Steps[None]:
        """Take the query's own examples for graded, as far as the searches may find them."""
        examples = examples_of(feedback.query)
        points = [point for node_id in examples for point in points_of(node_id)]
        if not examples:
            return
        feedback.doing = "fetching the examples"
        found = Found.nothing()
        if points:
            found = yield from self.collection.fetch(points, feedback.vector, len(points))
        if len(found.ids) < len(examples):
            missing = f"{len(examples) - len(found.ids)} of the examples cannot be found: gone, or outside the filter"
            feedback.account.note(missing)
            logger.warning("Going on without some examples: %s", missing)
        feedback.add(found, Grades([examples[same_id(node.node_id)] for node in found.nodes]), believed=1.0)

    def _with_judged(self, feedback: Feedback, shown: Found) -> Steps[Found]:
        """Put the nodes that people have judged, wherever they rank, in the place of the last others shown."""
        judged = {same_id(node_id): node_id for node_id in self.grading.grader().judged(feedback.query)}
        names = [same_id(node.node_id) for node in shown.nodes]
        others = [at for at, name in enumerate(names) if name not in judged]
        room = self.feedback_top_k - (len(names) - len(others))
        elsewhere = [node_id for name, node_id in judged.items() if name not in names]
        missing = [point for node_id in elsewhere for point in points_of(node_id) if point not in feedback.shown]
        if not missing or room < 1:
            return shown
        feedback.doing = "fetching what people have judged"
        found = yield from self.collection.fetch(missing, feedback.vector, room)
        dropped = others[max(len(others) - len(found.ids), 0) :]
        return shown.at([at for at in range(len(shown.ids)) if at not in dropped]).beside(found)

    def _background(self, space: Space) -> Steps[Background | None]:
        if not (self.collection.background_size and self.refining.refiner_for(space.metric).wants_background):
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

    def _read(self, feedback: Feedback) -> NDArray[np.float64]:
        """Return the grades as they count: uncertain ones drawn to the mean, on the scale that the teacher uses."""
        grades = np.array(feedback.grades, dtype=np.float64)
        said = feedback.said()
        if said:
            heard = np.array(shrink(grades[said].tolist(), [feedback.spread[at] for at in said]))
            grades[said] = self.trust.calibrate(heard) if isinstance(self.trust, Reliability) else heard
        return grades

    def _trust(self, feedback: Feedback, space: Space, final: bool = True) -> float:
        """Say how far to follow the teacher. Its record takes in a query's grades once, at the end."""
        if not isinstance(self.trust, Reliability):
            return self.trust
        said = feedback.said()
        fresh = [at for at in said if feedback.ids[at] not in feedback.recalled]
        # What was graded before has told what it can of the teacher, unless nothing has been heard of it here.
        if not said or (not fresh and self.trust.belief.varied):
            return self.trust.belief.trust()
        said = fresh or said
        documents = torch.stack([feedback.documents[at] for at in said])
        similarities = similarity(torch.from_numpy(feedback.vector), documents, space.metric)
        judge = self.trust.observe if final else self.trust.foresee
        return judge(documents.numpy(), [feedback.grades[at] for at in said], similarities.numpy())

    def _move(self, feedback: Feedback, background: Background | None, space: Space, trust: float) -> Steps[Refinement]:
        """Refine the query by all that was graded so far."""
        vectors, population = None, None
        if background is not None:
            # A background document that has been graded would be counted twice, the second time as irrelevant.
            known = feedback.shown | {loan.point for loan in feedback.carried}
            keep = [at for at, point in enumerate(background.ids) if point not in known]
            if keep:
                vectors = background.vectors if len(keep) == len(background.ids) else background.vectors[keep]
                population = max(background.population - len(feedback.shown), len(keep))
        feedback.doing = "refining"
        documents, grades = torch.stack(feedback.documents), torch.tensor(self._read(feedback), dtype=torch.float32)
        query_str = feedback.query.query_str
        signal = self.trust.signal() if isinstance(self.trust, Reliability) else TYPICAL_SIGNAL
        shares = np.array([trust if share is None else share for share in feedback.believed], dtype=np.float32)
        lesson = Lesson(
            feedback.vector, documents, grades, vectors, population, space.metric, shares, signal, query_str
        )
        refinement: Refinement = yield Step("refine", self.refining, lesson)
        if vectors is not None and (borrowed := feedback.borrowed()):
            loans = torch.stack([loan.vector for loan in borrowed])
            every = replace(
                lesson,
                documents=torch.cat([documents, loans]),
                grades=torch.cat([grades, torch.tensor([loan.grade for loan in borrowed])]),
                trust=np.r_[shares, [np.float32(loan.belief * trust) for loan in borrowed]],
            )
            wider: Refinement = yield Step("refine", self.refining, every)
            refinement = within(refinement, np.asarray(wider.vector))
        feedback.path.append(refinement.vector)
        return refinement

    def _another_round(self, feedback: Feedback, refinement: Refinement, share: int, space: Space) -> Steps[bool]:
        """Grade documents that the refined ranking brings up. :return: whether there were any worth it."""
        feedback.doing = "the ranking between rounds"
        plenty, may_stop = float(refinement.grades.mean()) > PLENTY, self._may_stop(space)
        # Where the ranking is deep, its nodes are large, or places in it count, what is graded next is fetched alone.
        alone = (plenty or self.collection.inline or (may_stop and feedback.words)) and self.collection.can_fetch
        wide = max(share, self.similarity_top_k) if may_stop else share
        if alone:
            deep = max(DEPTH if plenty else 0, wide + len(feedback.shown))
            ranking = yield from self.collection.rank(refinement.vector, deep, **feedback.words)
        else:
            seen = feedback.shown
            ranking = yield from self.collection.search_next(refinement.vector, wide, seen, **feedback.words)
        new = [at for at, point in enumerate(ranking.ids) if point not in feedback.shown]
        if may_stop and self._little_to_gain(feedback, refinement, ranking, new, space):
            feedback.saved = self.feedback_top_k - feedback.asked
            return False
        wanted = new[:share]
        if alone and plenty:
            wanted = spread_out(feedback, refinement, ranking, new, share)
        shown = (yield from self._fetched(feedback, refinement, ranking, wanted)) if alone else ranking.at(wanted)
        if not shown.ids:
            return False
        yield from self._grade(feedback, shown)
        return True

    def _fetched(
        self, feedback: Feedback, refinement: Refinement, ranking: Found, wanted: Sequence[int]
    ) -> Steps[Found]:
        feedback.doing = "fetching what is graded next"
        ids = [ranking.ids[at] for at in wanted]
        shown = yield from self.collection.fetch(ids, refinement.vector, len(ids), **feedback.words)
        score = dict(zip(ranking.ids, ranking.scores, strict=True))
        return replace(shown, scores=[score[point] for point in shown.ids])

    def _may_stop(self, space: Space) -> bool:
        """Say whether it can be told when more grades change nothing: of a list no longer than what may be graded."""
        own = self.refining.refiner_for(space.metric).own_grade
        told = self.collection.can_fetch or self.collection.options.hybrid is None
        return self.early_stop and self.similarity_top_k <= self.feedback_top_k and own > 0 and told

    def _little_to_gain(
        self, feedback: Feedback, refinement: Refinement, ranking: Found, new: Sequence[int], space: Space
    ) -> bool:
        left = self.feedback_top_k - feedback.asked
        own_grade = self.refining.refiner_for(space.metric).own_grade
        trust = self._trust(feedback, space, final=False)
        gain = gain_of(feedback, refinement, ranking, new, left, own_grade * trust**2, self.similarity_top_k)
        return gain < SETTLED


def _empty(query: QueryBundle) -> bool:
    given = query.embedding is not None or query.image_path
    return not given and not any(text.strip() for text in query.embedding_strs)
