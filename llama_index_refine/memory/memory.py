"""The memory of past queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from llama_index.core.schema import MetadataMode
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.vector_stores.qdrant import QdrantVectorStore

from llama_index_refine.ids import key_of, same_id
from llama_index_refine.memory.export import Kind, check, rows_of, texts_in, write
from llama_index_refine.memory.records import TEACHERS, Keeping, Records
from llama_index_refine.memory.remembered import RememberedGrade, RememberedQuery, Vector, merged
from llama_index_refine.memory.transfer import NEIGHBOURS
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.scheduling import arun, perform, run

_user: ContextVar[str | None] = ContextVar("user of a refinement memory", default=None)

# The size limit is kept by dropping so many at once.
DROPPED = 0.1


class RefinementMemory:
    """Remembers grades, so that the same question costs no call, and a similar one costs fewer.

    Grades are kept with the query's text and vector, its filter and the time, under the collection, the vector's name,
    the embedding model, what decides the teacher's grades, the filter and the shard key: what was graded under one
    filter is never used under another. A node whose text or metadata has changed since, or that is gone, is not
    remembered. The memory also keeps each teacher's record (`Reliability`), so that a new process follows the teacher
    at once. If the store fails, you get a warning, and the query goes on without it.

    :param store: a LlamaIndex key-value store, or a `QdrantVectorStore` on a collection of its own, which is made when
        first needed. Each query reads all queries of its scope from a key-value store, so use one for up to some
        thousand queries. Processes share a store that is on a server or in a database. Within a process, no judgement
        is lost if several come at once. If two processes write the same query at the same moment, the later one counts.
    :param max_age: seconds for which a teacher's grades hold, above 0; None for ever. People's hold until they are
        forgotten.
    :param max_queries: the most queries to remember for each collection, teacher and filter, at least 1. Those asked
        longest ago are dropped first, and those that people judged are dropped last.
    :param clock: returns the time in seconds since 1970.
    :raises ValueError: an argument outside its range, or another kind of store.
    """

    def __init__(
        self,
        store: BaseKVStore | QdrantVectorStore,
        max_age: float | None = 30 * 24 * 3600,
        max_queries: int = 1000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_age is not None and not max_age > 0:
            raise ValueError(f"max_age must be above 0, got {max_age}")
        if max_queries < 1:
            raise ValueError(f"max_queries must be at least 1, got {max_queries}")
        self.max_age = max_age
        self.max_queries = max_queries
        self.clock = clock
        self._reading = Keeping(store)
        self._writing = Keeping(store, writing=True)

    @contextmanager
    def as_user(self, user: str) -> Iterator[None]:
        """Say whose queries and judgements these are, so that `forget` finds them.

        It holds for what you call inside the `with` block, in this thread or task.

        :param user: the user.
        """
        token = _user.set(user)
        try:
            yield
        finally:
            _user.reset(token)

    @property
    def user(self) -> str | None:
        """Whose queries these are; None if `as_user` was not called."""
        return _user.get()

    async def recall(
        self, scope: str, query_str: str, vector: Vector
    ) -> tuple[RememberedQuery | None, list[RememberedQuery]]:
        """Find a query, and those that are similar.

        :param scope: what grades must hold for.
        :param query_str: the query's text, with whatever else tells it from others.
        :param vector: (d,)
        :return: the query itself where it was asked before, and others, nearest first; without expired grades.
        """
        record, similar = await perform(
            "memory", self._reading, partial(_recall, scope=scope, query_str=query_str, vector=vector)
        )
        same = self._fresh(RememberedQuery.from_dict(record))
        if same is not None and same.scope != scope:
            same = None
        others = [self._fresh(RememberedQuery.from_dict(row)) for row in similar]
        return same, [
            other
            for other in others
            if other is not None and other.scope == scope and other.query_str != query_str and other.grades
        ]

    async def remember(self, query: RememberedQuery, gone: Collection[str] = ()) -> None:
        """Keep a query and its grades, beside what others have judged of it meanwhile.

        :param query: the query.
        :param gone: nodes that are there no more, whose grades are dropped.
        """
        await perform("memory", self._writing, partial(self._keep, query=query, gone=frozenset(gone)))

    async def queries(self) -> list[RememberedQuery]:
        """Return all queries, in all scopes, without expired grades."""
        rows = await perform("memory", self._reading, lambda records: records.everything())
        return [query for _, _, row in rows if (query := self._fresh(RememberedQuery.from_dict(row)))]

    def forget(self, *, node_ids: Sequence[str] = (), doc_ids: Sequence[str] = (), user: str | None = None) -> int:
        """Forget grades, in all scopes: of some nodes, of some documents' nodes, or of a user.

        A query that has no other is forgotten with its text and vector.

        :param node_ids: the nodes.
        :param doc_ids: the documents.
        :param user: whose grades and judgements.
        :return: how many grades were forgotten.
        :raises ValueError: nothing is named.
        :raises Exception: the store failed.
        """
        return run([self._forget(node_ids, doc_ids, user)])[0].get()

    async def aforget(
        self, *, node_ids: Sequence[str] = (), doc_ids: Sequence[str] = (), user: str | None = None
    ) -> int:
        """Forget without blocking the event loop. See `forget`."""
        return (await arun([self._forget(node_ids, doc_ids, user)]))[0].get()

    def export(
        self,
        path: str | Path,
        vector_store: QdrantVectorStore,
        kind: Kind = "triplets",
        metadata_mode: MetadataMode = MetadataMode.EMBED,
    ) -> int:
        """Write what was graded as JSON lines, to fine-tune an embedding model with sentence-transformers.

        Triplets have the columns `anchor`, `positive` and `negative`, pairs `sentence1`, `sentence2` and `score`, a
        grade in [0, 1]. Anchor and sentence1 are the query. All have `by` ("people", "teacher", or "both" where they
        differ in a triplet), `date` (of the latest grade, ISO 8601) and `filters` (the search's filter as JSON, empty
        for none). A person's judgement replaces the teacher's grade of the same node. Relevant are grades of at least
        .5. Grades that have expired, and nodes that have changed since or are gone, are left out.

        :param path: the file, which is replaced.
        :param vector_store: the collection that was searched; it has the texts, which the memory does not keep.
        :param kind: "triplets" for MultipleNegativesRankingLoss or TripletLoss, "pairs" for CoSENTLoss or
            CosineSimilarityLoss.
        :param metadata_mode: which metadata stands before a node's text, as it was embedded: `EMBED` where LlamaIndex
            wrote the collection, `NONE` where the text alone was embedded.
        :return: how many rows were written.
        :raises ValueError: another kind, or a store that holds none of the graded nodes as they were graded.
        :raises OSError: the file cannot be written.
        :raises Exception: a store failed.
        """
        return run([self._export(path, vector_store, kind, metadata_mode)])[0].get()

    async def aexport(
        self,
        path: str | Path,
        vector_store: QdrantVectorStore,
        kind: Kind = "triplets",
        metadata_mode: MetadataMode = MetadataMode.EMBED,
    ) -> int:
        """Write what was graded without blocking the event loop. See `export`."""
        return (await arun([self._export(path, vector_store, kind, metadata_mode)]))[0].get()

    def clear(self) -> None:
        """Forget everything, teachers too.

        :raises Exception: the store failed.
        """
        run([self._clear()])[0].get()

    async def aclear(self) -> None:
        """Forget everything without blocking the event loop. See `clear`."""
        (await arun([self._clear()]))[0].get()

    async def meet(self, teacher: str, record: Reliability) -> None:
        """Take over what is known of a teacher, where more is known than here. What cannot be read is as good as none.

        :param teacher: what decides its grades.
        :param record: its record in this process.
        """
        found = await perform("memory", self._reading, lambda records: records.read(TEACHERS, key_of(teacher)))
        if (known := _record_in(found)) is not None:
            record.adopt(known)

    async def note(self, teacher: str, record: Reliability) -> None:
        """Keep a teacher's record, unless more is known of it already.

        :param teacher: what decides its grades.
        :param record: its record in this process.
        """
        await perform("memory", self._writing, partial(_note, key=key_of(teacher), record=record))

    def _fresh(self, query: RememberedQuery | None) -> RememberedQuery | None:
        if query is None or self.max_age is None:
            return query
        oldest = self.clock() - self.max_age
        expired = [grade for grade in query.grades if not grade.people and grade.time < oldest]
        return query.without(expired) if expired else query

    async def _keep(self, records: Records, query: RememberedQuery, gone: frozenset[str]) -> None:
        key = key_of(query.scope, query.query_str)
        before = self._fresh(RememberedQuery.from_dict(await records.read(query.scope, key)))
        if before is not None and before.scope == query.scope:
            query = merged(before, query, gone)
        await records.write(query.scope, key, query.to_dict(), query.vector)
        if before is None and await records.size(query.scope) > self.max_queries:
            await self._shrink(records, query.scope)

    async def _shrink(self, records: Records, scope: str) -> None:
        rows = await records.everything(scope)
        last = {key: (query.judged, query.time) for _, key, row in rows if (query := RememberedQuery.from_dict(row))}
        keys = sorted((key for _, key, _ in rows), key=lambda key: last.get(key, (False, 0.0)))
        await records.erase(scope, keys[: max(len(rows) - self.max_queries, int(DROPPED * self.max_queries))])

    async def _forget(self, node_ids: Sequence[str], doc_ids: Sequence[str], user: str | None) -> int:
        if isinstance(node_ids, str) or isinstance(doc_ids, str):
            raise ValueError("node_ids and doc_ids must be lists of ids, not one text")
        users = [] if user is None else [user]
        for name, given in (("node_ids", node_ids), ("doc_ids", doc_ids), ("user", users)):
            # Nodes of no document have None for theirs.
            if any(one is None or not str(one).strip() for one in given):
                raise ValueError(f"{name} has an empty name, which would stand for all that have none")
        nodes, documents = {same_id(node_id) for node_id in node_ids}, set(doc_ids)
        if not nodes and not documents and user is None:
            raise ValueError("name what to forget: node_ids, doc_ids or user; clear() forgets everything")

        def named(grade: RememberedGrade) -> bool:
            of_user = user is not None and grade.user == user
            return grade.node_id in nodes or grade.doc_id in documents or of_user

        return int(await perform("memory", self._writing, partial(_forget, named=named)))

    async def _export(self, path: str | Path, store: QdrantVectorStore, kind: Kind, mode: MetadataMode) -> int:
        check(kind, store)
        queries = await self.queries()
        texts = await texts_in(store, queries, mode)
        return write(path, [row for query in queries for row in rows_of(query, texts, kind)])

    async def _clear(self) -> None:
        await perform("memory", self._writing, _clear)


async def _recall(records: Records, scope: str, query_str: str, vector: Vector) -> tuple[Any, list[Any]]:
    record = await records.read(scope, key_of(scope, query_str))
    # The query itself may be among the nearest.
    return record, await records.nearest(scope, vector, NEIGHBOURS + 1)


async def _note(records: Records, key: str, record: Reliability) -> None:
    found = _record_in(await records.read(TEACHERS, key))
    if found is None or not found.knows_more_than(record):
        await records.write(TEACHERS, key, record.to_dict())


def _record_in(found: Any) -> Reliability | None:
    try:
        return Reliability.from_dict(found)
    except ValueError:
        return None


async def _forget(records: Records, named: Callable[[RememberedGrade], bool]) -> int:
    count = 0
    for scope, key, row in await records.everything():
        query = RememberedQuery.from_dict(row)
        forgotten = [grade for grade in query.grades if named(grade)] if query else []
        if query is None or not forgotten:
            continue
        count += len(forgotten)
        left = query.without(forgotten)
        if left.grades:
            await records.write(scope, key, left.to_dict(), left.vector)
        else:
            await records.erase(scope, [key])
    return count


async def _clear(records: Records) -> None:
    by_scope = itemgetter(0)
    for scope, rows in groupby(sorted(await records.everything(), key=by_scope), by_scope):
        await records.erase(scope, [key for _, key, _ in rows])
