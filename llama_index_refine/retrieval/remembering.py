"""What past queries have to say: grades of this very query, loans of similar ones; and what is kept of this one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from unicodedata import normalize

import numpy as np
import torch
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import QueryBundle

from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.ids import key_of, same_id
from llama_index_refine.images.identity import query_identity
from llama_index_refine.memory.memory import RefinementMemory
from llama_index_refine.memory.records import WrongSizeError
from llama_index_refine.memory.remembered import RememberedGrade, RememberedQuery, content_of, grade_of, opinions
from llama_index_refine.memory.transfer import MAYBE, carry, follows, led, similarity_of
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Found, points_of
from llama_index_refine.qdrant.views.dense import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.newton import divergence
from llama_index_refine.refining.refiner import TINY
from llama_index_refine.refining.trust import Reliability, Teacher
from llama_index_refine.retrieval.feedback import Feedback, Loan
from llama_index_refine.retrieval.queries import Embedding
from llama_index_refine.similarity import similarity

logger = logging.getLogger(__name__)

NO_MEMORY = "memory compares queries by their dense vectors, and only a sparse one is searched: leave it out"

# An embedding that differs by more, in cosine, is another model's.
SAME_VECTOR = 0.999
# How many of the nodes at the top are kept with a query, to tell new ones by.
SEEN = 300


@dataclass
class Recollection:
    """What is remembered for one query.

    :param name: the query's text, and what else tells it from others.
    :param scope: what its grades hold for.
    :param same: the query itself, None where it was not asked before.
    :param similar: queries like it, with how much, as cosines between MAYBE and 1.
    :param gone: nodes that were graded for it and are there no more.
    :param kept: earlier grades of the teacher's that hold, or whose nodes cannot be asked for now.
    """

    name: str
    scope: str
    same: RememberedQuery | None = None
    similar: list[tuple[RememberedQuery, float]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    kept: list[RememberedGrade] = field(default_factory=list)


@dataclass(frozen=True)
class Remembering:
    """Connects a retriever's queries with a memory. A memory that fails is as good as an empty one.

    :param memory: the memory.
    :param collection: what is searched.
    :param grader: the teacher.
    :param embedding: embeds queries.
    :param feedback_top_k: the most nodes that may be graded for one query.
    """

    memory: RefinementMemory
    collection: QdrantCollection
    grader: BaseGrader
    embedding: Embedding
    feedback_top_k: int

    async def recall(self, feedback: Feedback, teacher: Teacher, background: Background | None) -> Recollection:
        """Take what was graded for this very query as graded, and find queries that may lend grades.

        :param feedback: the query.
        :param teacher: what is known of the teacher; a new one takes over what is remembered of it.
        :param background: a sample of the collection, without which no query counts as similar.
        :return: what was found; nothing where the memory failed.
        """
        vector, scope = _vector(feedback.first), await self._scope(feedback.query)
        found = Recollection(_name(feedback.query), scope)
        try:
            if isinstance(teacher, Reliability) and not teacher.belief.queries:
                await self.memory.meet(self.grader.memory_fingerprint(), teacher)
            same, similar = await self.memory.recall(found.scope, found.name, vector)
        except Exception as error:
            _warn("could not be read", error)
            return found
        found.similar = _near(vector, similar, background)
        if same is not None and _alike(same.vector, vector):
            found.same = same
            await self._take(feedback, found, same)
        return found

    async def _take(self, feedback: Feedback, recollection: Recollection, same: RememberedQuery) -> None:
        """Take earlier grades, as far as the nodes are still the same; a grade goes only where its node is gone."""
        feedback.doing = "looking up what people have judged"
        # They may have changed their minds: what the grader has of them it says itself.
        judged = self._judged(feedback.query)
        known = {node_id: one for node_id, one in opinions(same.grades).items() if node_id not in judged}
        feedback.doing = "fetching what is remembered"
        found = await self._found(feedback, list(known))
        names = [same_id(node.node_id) for node in found.nodes]
        still = [at for at, node in enumerate(found.nodes) if known[names[at]].content == content_of(node)]
        absent = {name: points_of(name) for name in known if name not in names}
        lost = await self.collection.gone([point for points in absent.values() for point in points])
        recollection.gone = {name for name, points in absent.items() if lost.issuperset(points)}
        stale = recollection.gone | {*names} - {names[at] for at in still}
        recollection.kept = [grade for grade in same.grades if not grade.people and grade.node_id not in stale]
        for people in (False, True):
            places = [at for at in still if known[names[at]].people == people]
            heard = [known[names[at]] for at in places]
            grades = Grades([one.grade for one in heard], [one.spread for one in heard])
            feedback.take(found.at(places), grades, believed=1.0 if people else None)
        feedback.recalled = {found.ids[at] for at in still}
        # Where it was graded as far as it may be, and most of that holds, only what is new is worth a grade.
        feedback.settled = same.asked >= self.feedback_top_k and len(still) >= len(known) / 2
        if feedback.settled:
            feedback.passed = {*same.seen} - stale
        else:
            feedback.asked = min(len(feedback.said()), self.feedback_top_k)

    async def lend(self, feedback: Feedback, recollection: Recollection) -> None:
        """Let similar queries lend grades, where their grades agree with the first of this one."""
        if not recollection.similar or len(feedback.grades) < 2 or feedback.settled:
            return
        own = {same_id(entry.node_id): grade for entry, grade in zip(feedback.nodes, feedback.grades, strict=True)}
        lent = carry(recollection.similar, own)
        try:
            found = await self._found(feedback, list(lent))
        except Exception as error:
            _warn("found nodes that could not be fetched", error)
            return
        for at, node in enumerate(found.nodes):
            one = lent[same_id(node.node_id)]
            if content_of(node) in one.contents and found.ids[at] not in feedback.shown:
                feedback.loans.append(Loan(found.ids[at], found.vectors.at([at]), one.grade, one.belief))

    async def remember(
        self, feedback: Feedback, recollection: Recollection, before: Found, found: Found, teacher: Teacher
    ) -> None:
        """Keep what was graded for a query, and the teacher's record.

        :param feedback: what was.
        :param recollection: what was remembered.
        :param before: what the first search found.
        :param found: what the second search found.
        :param teacher: what is known of the teacher.
        """
        same = recollection.same
        try:
            if same is not None and not recollection.gone and len(feedback.recalled) == len(feedback.ids):
                # Nothing is new but when it was asked.
                await self.memory.remember(replace(same, grades=(), asked=0, time=self.memory.clock()))
                return
            # The teacher might have graded all it may, unless the budget ended before, or it failed.
            ungraded, account = len(feedback.shown) - len(feedback.ids), feedback.account
            ended = feedback.over or account.exhausted() or (ungraded and account.failures)
            most = feedback.asked - ungraded if ended else self.feedback_top_k
            if same is not None and feedback.settled:
                most = max(most, same.asked)
            first = [*before.ids[: self.feedback_top_k], *found.ids]
            seen = dict.fromkeys([*(same_id(point) for point in first), *feedback.passed])
            query = RememberedQuery(
                scope=recollection.scope,
                query_str=recollection.name,
                vector=_vector(feedback.first),
                grades=(*recollection.kept, *self._given(feedback)),
                time=self.memory.clock(),
                asked=most,
                seen=tuple(seen)[:SEEN],
                filters=self._filters(),
                follows=follows(*feedback.evidence(said)[1:]) if (said := feedback.said()) else 0.0,
            )
            await self.memory.remember(query, recollection.gone)
            if isinstance(teacher, Reliability):
                await self.memory.note(self.grader.memory_fingerprint(), teacher)
        except Exception as error:
            _warn("could not be written", error)

    async def judge(self, query: QueryBundle, asked: Query, node_id: str, grade: float, user: str | None) -> None:
        """Keep a person's judgement.

        :param query: the query.
        :param asked: what its search is for.
        :param node_id: the node.
        :param grade: its relevance in [0, 1].
        :param user: who says so; None for the memory's.
        :raises ValueError: no search of this retriever can find the node.
        """
        found = await self.collection.those(asked, points_of(node_id))
        if not found.ids:
            raise ValueError(f"node_id {node_id!r} cannot be found: it is gone, or outside the retriever's filter")
        now, who = self.memory.clock(), user if user is not None else self.memory.user
        judged = grade_of(found.nodes[0], grade, people=True, time=now, user=who)
        scope = await self._scope(query)
        await self.memory.remember(
            RememberedQuery(scope, _name(query), _vector(asked), (judged,), now, filters=self._filters())
        )

    async def judgements(self) -> list[RememberedQuery]:
        """Return the queries of this collection and teacher that people have judged."""
        found = [query for query in await self.memory.queries() if query.judged]
        scopes = {query.query_str: await self._scope(QueryBundle(query.query_str)) for query in found}
        return [query for query in found if query.scope == scopes[query.query_str]]

    def _judged(self, query: QueryBundle) -> set[str]:
        """Return the nodes of which the grader has people's word."""
        return {same_id(node_id) for node_id in self.grader.judged(query)}

    def _given(self, feedback: Feedback) -> Iterator[RememberedGrade]:
        """Write down the grades that were given now: the teacher's, and those of people that it knew."""
        judged = self._judged(feedback.query)
        for at, entry in enumerate(feedback.nodes):
            if feedback.ids[at] not in feedback.recalled and feedback.believed[at] is None:
                yield grade_of(
                    entry.node,
                    feedback.grades[at],
                    spread=feedback.spread[at],
                    people=same_id(entry.node_id) in judged,
                    time=self.memory.clock(),
                    user=self.memory.user,
                )

    async def _found(self, feedback: Feedback, node_ids: Sequence[str]) -> Found:
        points = [point for node_id in node_ids for point in points_of(node_id) if point not in feedback.shown]
        return (await self.collection.those(feedback.first, points, vectors=True)).with_vectors()

    async def _scope(self, query: QueryBundle) -> str:
        """Name what a grade holds for. Nothing that is remembered in one scope is ever used in another."""
        space = await self.collection.space()
        model = "given with the query"
        if query.embedding is None:
            model = _model(self.embedding.model())
        store = self.collection.store
        filters = f"{self._filters()} {self.collection.options.shard_key!r}"
        return key_of(store.collection_name, space.name or "", model, self.grader.memory_fingerprint(), filters)

    def _filters(self) -> str:
        admitted = self.collection.options.filter
        return admitted.model_dump_json(exclude_none=True) if admitted is not None else ""


def within(refinement: Refinement, towards: np.ndarray) -> Refinement:
    """Let borrowed grades lead a refinement as far as they may; they say nothing of where a graded document ranks.

    :param refinement: by the query's own grades.
    :param towards: (d,) where all grades would take the query.
    :return: the refinement at the new vector.
    """
    before, query = np.asarray(refinement.vector), np.asarray(refinement.query)
    rows = np.asarray(refinement.background, dtype=np.float64)
    led_to = led(before.astype(float), np.asarray(towards, dtype=float), query.astype(float), rows, refinement.metric)
    return moved_to(refinement, led_to)


def moved_to(refinement: Refinement, vector: np.ndarray) -> Refinement:
    """Put a refinement at another vector; its grades place its documents by as much as they did.

    :param refinement: how a query moved.
    :param vector: (d,) where it is to be instead.
    :return: the refinement at that vector.
    """
    before, after = np.asarray(refinement.vector), _floats(vector)
    known = torch.from_numpy(np.concatenate([refinement.documents, refinement.background]))
    old, new = (similarity(torch.from_numpy(vector), known, refinement.metric) for vector in (before, after))
    logits = torch.as_tensor(refinement.student_after).clamp_min(TINY).log() + (new - old) / refinement.tau
    student = logits.double().log_softmax(-1)
    moved = (new - old)[: len(refinement.grades)].numpy()
    return replace(
        refinement,
        vector=after,
        fused=_floats(refinement.fused + moved),
        held_out=_floats(refinement.held_out + moved),
        student_after=_floats(student.exp().numpy()),
        kl_after=float(divergence(torch.as_tensor(refinement.target).double(), student)),
    )


def _near(
    vector: np.ndarray, queries: list[RememberedQuery], background: Background | None
) -> list[tuple[RememberedQuery, float]]:
    """Keep the queries that are similar, with how much."""
    if background is None or len(background.ids) < 2 or not queries:
        return []
    documents = background.vectors.dense.numpy().astype(np.float64)
    similarities = similarity_of(vector.astype(np.float64), queries, documents).tolist()
    return [(query, cosine) for query, cosine in zip(queries, similarities, strict=True) if cosine > MAYBE]


def _name(query: QueryBundle) -> str:
    parts = [*query.embedding_strs, query_identity(query)] if query.custom_embedding_strs else [query_identity(query)]
    # However its letters are put together: composed or not, they are the same text.
    return normalize("NFC", " ".join([query.query_str, *parts]).strip())


def _model(model: BaseEmbedding) -> str:
    """Name a model by what decides its vectors, and never by its settings at large, which hold keys."""
    chosen = [getattr(model, name, None) for name in ("model_name", "dimensions", "query_instruction", "embed_dim")]
    return f"{type(model).__module__}.{type(model).__qualname__} {chosen}"


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return lengths > 0 and float(one @ other) >= SAME_VECTOR * lengths


def _vector(query: Query) -> np.ndarray:
    """Return the vector by which queries are compared."""
    assert query.dense is not None
    return _floats(query.dense)


def _floats(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector, dtype=np.float32)


def _warn(what: str, error: Exception) -> None:
    # A store's error may show its address, with what is in it.
    why = str(error) if isinstance(error, WrongSizeError) else type(error).__name__
    logger.warning("The memory %s (%s); going on without it", what, why)
