"""The steps that remember: what was graded for this query before, what similar ones lend, what is kept of this one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import QueryBundle

from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.ids import same_id
from llama_index_refine.images.identity import query_identity
from llama_index_refine.memory.memory import RefinementMemory
from llama_index_refine.memory.remembered import RememberedGrade, RememberedQuery, Scope, content_of, grade_of, opinions
from llama_index_refine.memory.shelves import WrongSizeError
from llama_index_refine.memory.transfer import MAYBE, carry, follows, led, similarity_of
from llama_index_refine.qdrant.background import Background
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Found, PointId, points_of
from llama_index_refine.qdrant.views.base import Query
from llama_index_refine.refinement import Refinement
from llama_index_refine.refining.newton import divergence
from llama_index_refine.refining.refiner import TINY
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.retrieval.feedback import Feedback, Loan
from llama_index_refine.similarity import similarity
from llama_index_refine.steps import Steps

logger = logging.getLogger(__name__)

NO_MEMORY = "memory compares queries by their dense vectors, and only a sparse one is searched: leave it out"

# An embedding that differs by more, in cosine, is another model's.
SAME_VECTOR = 0.999
# The share of that in which a document that was not there is new.
FRONT = 0.75
# The share of all grades that is asked for before similar queries may lend.
TO_COMPARE = 0.4
# How much of a ranking is kept, to tell new documents by.
RANKING = 50


@dataclass
class Recollection:
    """What is remembered for one query.

    :param name: the query's text, and what else tells it from others.
    :param scope: what its grades hold for.
    :param same: the query itself, None where it was not asked before.
    :param similar: queries like it.
    :param similarities: how much, as cosines between MAYBE and 1.
    :param passed: points at the top that are left ungraded on purpose.
    :param top: the first of the first search.
    :param gone: nodes that were graded for it and have changed, or are there no more.
    """

    name: str = ""
    scope: str = ""
    same: RememberedQuery | None = None
    similar: list[RememberedQuery] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    top: set[PointId] = field(default_factory=set)

    def settled(self, feedback_top_k: int) -> bool:
        """Whether the query was graded as far as it may be, and most of that still holds."""
        known = {grade.node_id for grade in self.same.grades} if self.same else set()
        return self.same is not None and self.same.asked >= feedback_top_k and len(self.gone) <= len(known) / 2


@dataclass(frozen=True)
class Remembering:
    """Connects a retriever's queries with a memory. A memory that fails is as good as an empty one.

    :param memory: the memory, None for none.
    :param collection: what is searched.
    :param grader: returns the teacher.
    :param embed_model: returns the model that embeds queries.
    """

    memory: RefinementMemory | None
    collection: QdrantCollection
    grader: Callable[[], BaseGrader]
    embed_model: Callable[[], BaseEmbedding]

    def check(self, asked: Query) -> None:
        """See that a memory can tell queries apart.

        :param asked: what a search is for.
        :raises ValueError: there is a memory, and no dense vector.
        """
        if self.memory is not None and asked.dense is None:
            raise ValueError(NO_MEMORY)

    def recall(
        self, feedback: Feedback, trust: Reliability | float, background: Background | None
    ) -> Steps[Recollection]:
        """Find what is remembered for a query, and of the teacher.

        :param feedback: the query.
        :param trust: the teacher's record; a new one takes over what is known of the teacher.
        :param background: a sample of the collection, without which no query counts as similar.
        :return: what was found; nothing where the memory failed.
        """
        found = Recollection()
        if self.memory is None:
            return found
        vector, scope = _vector(feedback.first), (yield from self._scope(feedback.query))
        found.name, found.scope = _name(feedback.query), scope.key
        try:
            if isinstance(trust, Reliability) and not trust.belief.queries:
                yield from self.memory.meet(self.grader().memory_fingerprint(), trust)
            same, similar = yield from self.memory.recall(found.scope, found.name, vector)
            if same is not None and _alike(same.vector, vector):
                found.same = same
            found.similar, found.similarities = _near(vector, similar, background)
        except Exception as error:
            _warn("could not be read", error)
        return found

    def take(self, feedback: Feedback, recollection: Recollection) -> Steps[None]:
        """Take what was graded for this very query as graded, as far as the nodes are still the same."""
        if recollection.same is None:
            return
        feedback.doing = "fetching what is remembered"
        known = opinions(recollection.same.grades)
        found = yield from self._fetched(feedback, list(known), len(known))
        contents = [content_of(node) for node in found.nodes]
        names = [same_id(node.node_id) for node in found.nodes]
        still = [at for at, name in enumerate(names) if known[name].content == contents[at]]
        recollection.gone |= set(known) - {names[at] for at in still}
        for people in (False, True):
            places = [at for at in still if known[names[at]].people == people]
            if places:
                heard = [known[names[at]] for at in places]
                grades = Grades([one.grade for one in heard], [one.spread for one in heard])
                feedback.add(found.at(places), grades, believed=1.0 if people else None)
                feedback.asked += 0 if people else len(places)
        feedback.recalled = {found.ids[at] for at in still}

    def new_among(
        self, feedback: Feedback, recollection: Recollection, shown: Found, limit: int, settled: bool
    ) -> Steps[Found]:
        """Say which nodes the first round is to grade: those that are not known, or were not there, or were others.

        Where similar queries may lend grades, fewer: enough to see whether they meant the same.

        :param feedback: what is known for the query.
        :param recollection: what is remembered.
        :param shown: the first nodes of the first search.
        :param limit: the most nodes that may be graded.
        :param settled: whether the query was graded before, so that only new nodes are to be graded now.
        :return: the nodes.
        """
        same = recollection.same
        recollection.top = {*shown.ids}
        new = feedback.new(shown)
        if same is None or not settled:
            room = limit - feedback.asked
            if recollection.similar:
                room = min(room, max(2, round(TO_COMPARE * limit) - feedback.asked))
            room = max(room, 0)
            recollection.passed = {same_id(str(point)) for point in new.ids[room:]}
            return new.at(range(room)) if len(new.ids) > room else new
        passed = {*same.passed} - recollection.gone
        recollection.passed = {*same.passed}
        new = new.at([at for at, point in enumerate(new.ids) if same_id(str(point)) not in passed])
        if same.refined is None:
            return new.at(range(min(limit, len(new.ids))))
        # What was just behind the last one is no news.
        front = max(1, round(FRONT * len(same.ranking)))
        ranking = yield from self.collection.rank(feedback.view.refined(same.refined), front)
        seen = {*same.ranking} - recollection.gone
        known = {*feedback.shown, *new.ids}
        ids = [point for point in ranking.ids if point not in known and same_id(str(point)) not in seen]
        if ids:
            new = new.beside((yield from self.collection.fetch(ids, feedback.first, len(ids))))
        return new.at(range(min(limit, len(new.ids))))

    def borrow(self, feedback: Feedback, recollection: Recollection) -> Steps[None]:
        """Let similar queries lend grades, where their grades agree with the first of this one."""
        if not recollection.similar or len(feedback.grades) < 2:
            return
        own = {same_id(entry.node_id): grade for entry, grade in zip(feedback.nodes, feedback.grades, strict=True)}
        lent = carry(recollection.similar, recollection.similarities, own)
        try:
            found = yield from self._fetched(feedback, list(lent), len(lent))
        except Exception as error:
            _warn("found nodes that could not be fetched", error)
            return
        for at, node in enumerate(found.nodes):
            one = lent[same_id(node.node_id)]
            if content_of(node) in one.contents and found.ids[at] not in feedback.shown:
                feedback.carried.append(Loan(found.ids[at], found.vectors.at([at]), one.grade, one.belief))

    def remember(
        self,
        feedback: Feedback,
        recollection: Recollection,
        refinement: Refinement,
        found: Found,
        settled: int,
        trust: Reliability | float,
    ) -> Steps[None]:
        """Keep what was graded for a query, and the teacher's record.

        :param feedback: what was.
        :param recollection: what was remembered.
        :param refinement: how it moved.
        :param found: what the second search found.
        :param settled: how many nodes the teacher might have graded.
        :param trust: the teacher's record.
        """
        same = recollection.same
        if self.memory is None:
            return
        if same is not None and not recollection.gone and len(feedback.recalled) == len(feedback.ids):
            return
        earlier = {} if same is None else {grade.node_id: grade for grade in same.grades if not grade.people}
        query = RememberedQuery(
            scope=recollection.scope,
            query_str=recollection.name,
            vector=_vector(feedback.first),
            grades=tuple(self._given(feedback, earlier, self.memory)),
            time=self.memory.clock(),
            asked=settled,
            refined=_floats(np.asarray(refinement.vector)) if feedback.view.lasts else None,
            ranking=tuple(same_id(str(point)) for point in found.ids[:RANKING]),
            passed=tuple(
                sorted(recollection.passed | {same_id(str(point)) for point in recollection.top - feedback.shown})
            ),
            filters=self._filters(),
            follows=_follows(feedback),
        )
        try:
            yield from self.memory.remember(query, recollection.gone)
            if isinstance(trust, Reliability):
                yield from self.memory.note(self.grader().memory_fingerprint(), trust)
        except Exception as error:
            _warn("could not be written", error)

    def judge(self, query: QueryBundle, asked: Query, node_id: str, grade: float, user: str | None) -> Steps[None]:
        """Keep a person's judgement.

        :param query: the query.
        :param asked: what its search is for.
        :param node_id: the node.
        :param grade: its relevance in [0, 1].
        :param user: who says so; None for the memory's.
        :raises ValueError: there is no memory, or no search of this retriever can find the node.
        """
        memory = self._required()
        found = yield from self._found(asked, points_of(node_id), 1)
        if not found.ids:
            raise ValueError(f"node_id {node_id!r} cannot be found: it is gone, or outside the retriever's filter")
        now, who = memory.clock(), user if user is not None else memory.user
        judged = grade_of(found.nodes[0], grade, people=True, time=now, user=who)
        scope = yield from self._scope(query)
        yield from memory.remember(
            RememberedQuery(scope.key, _name(query), _vector(asked), (judged,), now, filters=self._filters())
        )

    def _required(self) -> RefinementMemory:
        if self.memory is None:
            raise ValueError("memory is None: give the retriever a RefinementMemory to keep judgements in")
        return self.memory

    def _given(
        self, feedback: Feedback, earlier: dict[str, RememberedGrade], memory: RefinementMemory
    ) -> Generator[RememberedGrade, None, None]:
        """Write down the query's own grades: earlier ones that still hold, the teacher's, and people's."""
        judged = {same_id(node_id) for node_id in self.grader().judged(feedback.query)}
        for at, entry in enumerate(feedback.nodes):
            name = same_id(entry.node_id)
            if feedback.ids[at] in feedback.recalled:
                if name in earlier and feedback.believed[at] is None:
                    yield earlier[name]
            elif feedback.believed[at] is None:
                yield grade_of(
                    entry.node,
                    feedback.grades[at],
                    spread=feedback.spread[at],
                    people=name in judged,
                    time=memory.clock(),
                    user=memory.user,
                )

    def _fetched(self, feedback: Feedback, node_ids: list[str], limit: int) -> Steps[Found]:
        points = [point for node_id in node_ids for point in points_of(node_id) if point not in feedback.shown]
        return (yield from self._found(feedback.first, points, limit))

    def _found(self, query: Query, points: list[PointId], limit: int) -> Steps[Found]:
        if not points:
            return Found.nothing()
        return (yield from self.collection.fetch(points, query, max(limit, len(points))))

    def _scope(self, query: QueryBundle) -> Steps[Scope]:
        space = yield from self.collection.space()
        model = "given with the query" if query.embedding is not None else _model(self.embed_model())
        store = self.collection.store
        filters = f"{self._filters()} {self.collection.options.shard_key!r}"
        return Scope(store.collection_name, space.name or "", model, self.grader().memory_fingerprint(), filters)

    def _filters(self) -> str:
        admitted = self.collection.options.filter
        return admitted.model_dump_json(exclude_none=True) if admitted is not None else ""


def _follows(feedback: Feedback) -> float:
    """Say how the teacher's grades follow the first search."""
    said = feedback.said()
    if not said:
        return 0.0
    (documents,) = feedback.view.rows(feedback.documents.at(said))
    near = similarity(torch.from_numpy(feedback.view.row), documents, feedback.view.metric)
    return follows(np.array([feedback.grades[at] for at in said]), near.numpy().astype(np.float64))


def within(refinement: Refinement, towards: np.ndarray) -> Refinement:
    """Let borrowed grades lead a refinement as far as they may; they say nothing of where a graded document ranks.

    :param refinement: by the query's own grades.
    :param towards: (d,) where all grades would take the query.
    :return: the refinement at the new vector.
    """
    before, query = np.asarray(refinement.vector), np.asarray(refinement.query)
    rows = np.asarray(refinement.background, dtype=np.float64)
    led_to = led(before.astype(float), np.asarray(towards, dtype=float), query.astype(float), rows, refinement.metric)
    after = _floats(led_to)
    known = torch.from_numpy(np.concatenate([refinement.documents, refinement.background]))
    old, new = (similarity(torch.from_numpy(vector), known, refinement.metric) for vector in (before, after))
    logits = torch.as_tensor(refinement.student_after).clamp_min(TINY).log() + (new - old) / refinement.tau
    student = logits.double().log_softmax(-1)
    graded = len(refinement.grades)
    return replace(
        refinement,
        vector=after,
        fused=_floats(refinement.fused + (new - old)[:graded].numpy()),
        student_after=_floats(student.exp()),
        kl_after=float(divergence(torch.as_tensor(refinement.target).double(), student)),
    )


def _near(
    vector: np.ndarray, queries: list[RememberedQuery], background: Background | None
) -> tuple[list[RememberedQuery], list[float]]:
    """Keep the queries that are similar, with how much."""
    if background is None or len(background.ids) < 2 or not queries:
        return [], []
    documents = background.vectors.dense.numpy().astype(np.float64)
    similarities = similarity_of(vector.astype(np.float64), queries, documents).tolist()
    near = [(query, cosine) for query, cosine in zip(queries, similarities, strict=True) if cosine > MAYBE]
    return [query for query, _ in near], [cosine for _, cosine in near]


def _name(query: QueryBundle) -> str:
    parts = [*query.embedding_strs, query_identity(query)] if query.custom_embedding_strs else [query_identity(query)]
    return " ".join([query.query_str, *parts]).strip()


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
