"""The memory of past queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.vector_stores.qdrant import QdrantVectorStore

from llama_index_refine.ids import same_id
from llama_index_refine.memory.remembered import RememberedGrade, RememberedQuery, Vector, digest
from llama_index_refine.memory.shelves import TEACHERS, Asking, Shelf, shelf_on
from llama_index_refine.memory.transfer import NEIGHBOURS
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.steps import Step, Steps

_user: ContextVar[str | None] = ContextVar("user of a refinement memory", default=None)

# The size limit is kept by dropping so many at once.
DROPPED = 0.1


class RefinementMemory:
    """Remembers what was graded, so that the same question costs no call and a similar one fewer.

    Grades are kept with the query's text and vector, its filter and the time, under the collection, the vector's name,
    the embedding model, what decides the teacher's grades, the filter and the shard key: what was graded under one
    filter is never used under another. A node whose text or metadata has changed since, or that is gone, is not
    remembered. With the grades goes what is known of each teacher (`Reliability`), so that a new process does not start
    sceptical. A store that fails is as good as an empty one, and a warning.

    :param store: a LlamaIndex key-value store, or a `QdrantVectorStore` on a collection of its own, which is made when
        first needed. A key-value store is read by scope for each query, so it is for some thousand queries. Processes
        share one that is on a server or in a database.
    :param max_age: seconds for which a teacher's grades hold, above 0; None for ever. People's hold until they are
        forgotten.
    :param max_queries: the most queries to remember for each collection, teacher and filter, at least 1. Those asked
        longest ago go first, and those that people judged last.
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
        self._shelf: Shelf = shelf_on(store)

    @contextmanager
    def as_user(self, user: str) -> Iterator[None]:
        """Note whose queries and judgements these are, so that `forget` finds them.

        It holds for what is called inside, in this thread or task.

        :param user: the user.
        """
        token = _user.set(user)
        try:
            yield
        finally:
            _user.reset(token)

    @property
    def user(self) -> str | None:
        """Whose queries these are, None where nobody said."""
        return _user.get()

    def recall(self, scope: str, query_str: str, vector: Vector) -> Steps[tuple[RememberedQuery | None, list[Any]]]:
        """Find a query, and those that are similar.

        :param scope: what grades must hold for.
        :param query_str: the query's text, with whatever else tells it from others.
        :param vector: (d,)
        :return: the query itself where it was asked before, and others, nearest first; without expired grades.
        """
        found: Any = yield Step(
            "memory", self._shelf, partial(_recall, scope=scope, query_str=query_str, vector=vector)
        )
        record, similar = found
        same = self._fresh(RememberedQuery.from_dict(record))
        if same is not None and same.scope != scope:
            same = None
        others = [self._fresh(RememberedQuery.from_dict(row)) for row in similar]
        return same, [
            other
            for other in others
            if other is not None and other.scope == scope and other.query_str != query_str and other.grades
        ]

    def remember(self, query: RememberedQuery, gone: Collection[str] = ()) -> Steps[None]:
        """Keep a query and its grades, beside what others have judged of it meanwhile.

        :param query: the query.
        :param gone: nodes that have changed or are there no more, whose earlier grades are dropped.
        """
        yield Step("memory", self._shelf, partial(self._keep, query=query, gone=frozenset(gone)))

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
        return int(_first(self._shelf.run([self._forgetting(node_ids, doc_ids, user)])))

    async def aforget(
        self, *, node_ids: Sequence[str] = (), doc_ids: Sequence[str] = (), user: str | None = None
    ) -> int:
        """Forget without blocking the event loop. See `forget`."""
        return int(_first(await self._shelf.arun([self._forgetting(node_ids, doc_ids, user)])))

    def clear(self) -> None:
        """Forget everything, teachers too.

        :raises Exception: the store failed.
        """
        _first(self._shelf.run([_clear]))

    async def aclear(self) -> None:
        """Forget everything without blocking the event loop. See `clear`."""
        _first(await self._shelf.arun([_clear]))

    def meet(self, teacher: str, record: Reliability) -> Steps[None]:
        """Take over what is known of a teacher, where more is known than here.

        :param teacher: what decides its grades.
        :param record: its record in this process.
        """
        found = yield Step("memory", self._shelf, partial(_read, scope=TEACHERS, key=digest(teacher)))
        if found is not None:
            record.adopt(Reliability.from_dict(found))

    def note(self, teacher: str, record: Reliability) -> Steps[None]:
        """Keep a teacher's record, unless more is known of it already.

        :param teacher: what decides its grades.
        :param record: its record in this process.
        """
        yield Step("memory", self._shelf, partial(_note, key=digest(teacher), record=record))

    def _fresh(self, query: RememberedQuery | None) -> RememberedQuery | None:
        if query is None or self.max_age is None:
            return query
        oldest = self.clock() - self.max_age
        expired = [grade for grade in query.grades if not grade.people and grade.time < oldest]
        return query.without(expired) if expired else query

    def _keep(self, shelf: Shelf, query: RememberedQuery, gone: frozenset[str]) -> Asking:
        key = digest(query.scope, query.query_str)
        before = self._fresh(RememberedQuery.from_dict((yield from shelf.read(query.scope, key))))
        if before is not None and before.scope == query.scope:
            query = merged(before, query, gone)
        yield from shelf.write(query.scope, key, query.to_dict(), query.vector)
        if (yield from shelf.size(query.scope)) > self.max_queries:
            yield from self._shrink(shelf, query.scope)

    def _shrink(self, shelf: Shelf, scope: str) -> Asking:
        rows = yield from shelf.everything(scope)
        read = [(key, RememberedQuery.from_dict(row)) for _, key, row in rows]
        read.sort(key=lambda entry: (False, 0.0) if entry[1] is None else (entry[1].judged, entry[1].time))
        least = len(rows) - self.max_queries
        yield from shelf.erase(scope, [key for key, _ in read[: max(least, int(DROPPED * self.max_queries))]])

    def _forgetting(
        self, node_ids: Sequence[str], doc_ids: Sequence[str], user: str | None
    ) -> Callable[[Shelf], Asking]:
        if isinstance(node_ids, str) or isinstance(doc_ids, str):
            raise ValueError("node_ids and doc_ids must be lists of ids, not one text")
        nodes, documents = {same_id(node_id) for node_id in node_ids}, set(doc_ids)
        if not nodes and not documents and user is None:
            raise ValueError("name what to forget: node_ids, doc_ids or user; clear() forgets everything")

        def named(grade: RememberedGrade) -> bool:
            of_user = user is not None and grade.user == user
            return grade.node_id in nodes or grade.doc_id in documents or of_user

        return partial(_forget, named=named)


def merged(before: RememberedQuery, now: RememberedQuery, gone: Collection[str] = ()) -> RememberedQuery:
    """Put a query's new grades to those that are kept.

    :param before: what is kept.
    :param now: what was learnt; it knows which of the teacher's earlier grades still hold.
    :param gone: nodes whose earlier grades are dropped.
    :return: both: the teacher's grades as of now, and each person's latest judgement of each node.
    """
    if not now.asked:
        teachers = [grade for grade in before.grades if not grade.people]
        kept_of_it = ("asked", "refined", "ranking", "passed", "follows")
        now = replace(now, **{name: getattr(before, name) for name in kept_of_it})
    else:
        teachers = [grade for grade in now.grades if not grade.people]
    kept = [grade for grade in before.grades if grade.node_id not in gone]
    people = {
        (grade.node_id, grade.user): grade
        for grade in sorted((*kept, *now.grades), key=lambda grade: grade.time)
        if grade.people
    }
    return replace(now, grades=(*teachers, *people.values()))


def _recall(shelf: Shelf, scope: str, query_str: str, vector: Vector) -> Asking:
    record = yield from shelf.read(scope, digest(scope, query_str))
    # The query itself may be among the nearest.
    similar = yield from shelf.nearest(scope, vector, NEIGHBOURS + 1)
    return record, similar


def _read(shelf: Shelf, scope: str, key: str) -> Asking:
    return (yield from shelf.read(scope, key))


def _note(shelf: Shelf, key: str, record: Reliability) -> Asking:
    found = yield from shelf.read(TEACHERS, key)
    if found is None or not Reliability.from_dict(found).knows_more_than(record):
        yield from shelf.write(TEACHERS, key, record.to_dict())


def _forget(shelf: Shelf, named: Callable[[RememberedGrade], bool]) -> Asking:
    count = 0
    for scope, key, row in (yield from shelf.everything()):
        query = RememberedQuery.from_dict(row)
        forgotten = [grade for grade in query.grades if named(grade)] if query else []
        if query is None or not forgotten:
            continue
        count += len(forgotten)
        left = query.without(forgotten)
        if left.grades:
            yield from shelf.write(scope, key, left.to_dict(), left.vector)
        else:
            yield from shelf.erase(scope, [key])
    return count


def _clear(shelf: Shelf) -> Asking:
    by_scope: dict[str, list[str]] = {}
    for scope, key, _ in (yield from shelf.everything()):
        by_scope.setdefault(scope, []).append(key)
    for scope, keys in by_scope.items():
        yield from shelf.erase(scope, keys)


def _first(results: Sequence[Any]) -> Any:
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result
