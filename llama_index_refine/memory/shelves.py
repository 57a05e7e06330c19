"""Where remembered queries are kept: a LlamaIndex key-value store, or a Qdrant collection of their own.

Each shelf says what it asks of its store as a sequence of calls, which serves blocking and asynchronous code alike.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

import numpy as np
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.memory.remembered import Vector, vector_in
from llama_index_refine.qdrant.clients import Call, ClientOperation
from llama_index_refine.steps import answered, at_once

Row = dict[str, Any]
Asking = Generator[Call, Any, Any]
# Records that one call lists.
PAGE = 256
# The scope of records that are no queries.
TEACHERS = "teachers"


class WrongSizeError(ValueError):
    """A query's vector does not go into a collection."""


class Shelf(Protocol):
    """Keeps records by scope and key. An item of `run` and `arun` is a function of the shelf that asks it.

    A key is 32 hexadecimal digits or more; a record is a dictionary that JSON can hold.
    """

    def run(self, items: Sequence[Callable[[Any], Asking]]) -> Sequence[Any]:
        """Ask, blocking. What goes wrong with one item is returned in its place."""

    async def arun(self, items: Sequence[Callable[[Any], Asking]]) -> Sequence[Any]:
        """Ask without blocking the event loop."""

    @abstractmethod
    def read(self, scope: str, key: str) -> Asking:
        """Return a record, None where there is none."""

    @abstractmethod
    def nearest(self, scope: str, vector: Vector, limit: int) -> Asking:
        """Return records of a scope, those with the nearest vectors first."""

    @abstractmethod
    def write(self, scope: str, key: str, record: Row, vector: Vector | None = None) -> Asking:
        """Write a record in the place of the one with its key; without a vector, `nearest` never finds it."""

    @abstractmethod
    def erase(self, scope: str, keys: Sequence[str]) -> Asking:
        """Delete records."""

    @abstractmethod
    def size(self, scope: str) -> Asking:
        """Return how many records a scope has."""

    @abstractmethod
    def everything(self, scope: str | None = None) -> Asking:
        """Return (scope, key, record) of all records, or of a scope's."""


def asked(shelf: Any, items: Sequence[Callable[[Any], Asking]]) -> Generator[Call, Any, list[Any]]:
    """Ask for one item after the other."""
    results: list[Any] = []
    for item in items:
        try:
            results.append((yield from item(shelf)))
        except Exception as error:
            results.append(error)
    return results


@dataclass(eq=False)
class KeyValueShelf:
    """Keeps each scope in a collection of its own of a key-value store, whose vectors are compared here.

    :param store: the store.
    :param name: what the names of its collections begin with.
    """

    store: BaseKVStore
    name: str = "refinement_memory"
    _listed: set[str] = field(default_factory=set)

    def run(self, items: Sequence[Callable[[Any], Asking]]) -> Sequence[Any]:
        """See `Shelf.run`."""

        async def ask(call: Call) -> Any:
            return getattr(self.store, call.method)(**call.arguments)

        return at_once(answered(asked(self, items), ask))

    async def arun(self, items: Sequence[Callable[[Any], Asking]]) -> Sequence[Any]:
        """See `Shelf.arun`."""

        async def ask(call: Call) -> Any:
            return await getattr(self.store, f"a{call.method}")(**call.arguments)

        return await answered(asked(self, items), ask)

    def read(self, scope: str, key: str) -> Asking:
        """See `Shelf.read`."""
        record = yield Call("get", {"key": key, "collection": self._collection(scope)})
        return record

    def nearest(self, scope: str, vector: Vector, limit: int) -> Asking:
        """See `Shelf.nearest`."""
        rows = yield Call("get_all", {"collection": self._collection(scope)})
        known = [(row, read) for row in rows.values() if (read := vector_in(row)) is not None]
        known = [(row, read) for row, read in known if read.shape == vector.shape]
        if not known:
            return []
        vectors = np.stack([read for _, read in known])
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        first = np.argsort(-(vectors @ vector), kind="stable")[:limit]
        return [known[at][0] for at in first]

    def write(self, scope: str, key: str, record: Row, vector: Vector | None = None) -> Asking:
        """See `Shelf.write`."""
        if scope not in self._listed:
            yield Call("put", {"key": scope, "val": {"scope": scope}, "collection": self.name})
            self._listed.add(scope)
        yield Call("put", {"key": key, "val": record, "collection": self._collection(scope)})

    def erase(self, scope: str, keys: Sequence[str]) -> Asking:
        """See `Shelf.erase`."""
        for key in keys:
            yield Call("delete", {"key": key, "collection": self._collection(scope)})

    def size(self, scope: str) -> Asking:
        """See `Shelf.size`."""
        rows = yield Call("get_all", {"collection": self._collection(scope)})
        return len(rows)

    def everything(self, scope: str | None = None) -> Asking:
        """See `Shelf.everything`."""
        scopes = [scope]
        if scope is None:
            scopes = list((yield Call("get_all", {"collection": self.name})))
        found = []
        for one in scopes:
            rows = yield Call("get_all", {"collection": self._collection(one or "")})
            found += [(one, key, row) for key, row in rows.items()]
        return found

    def _collection(self, scope: str) -> str:
        return f"{self.name}_{scope}"


@dataclass(eq=False)
class QdrantShelf(ClientOperation):
    """Keeps all scopes in one Qdrant collection, which finds similar queries by their vectors.

    :param store: the collection; it is made when first written to, for vectors of that size.
    """

    _size: int = 0

    def _calls(self, items: Sequence[Callable[[Any], Asking]]) -> Generator[Call, Any, list[Any]]:
        results = yield from asked(self, items)
        if any(isinstance(result, Exception) for result in results):
            # It may be gone, or another by now.
            self._size = 0
        return results

    def read(self, scope: str, key: str) -> Asking:
        """See `Shelf.read`."""
        if not (yield from self._there()):
            return None
        points = yield Call("retrieve", {"ids": [_point(key)], "with_payload": True})
        return next((point.payload["record"] for point in points if point.payload.get("scope") == scope), None)

    def nearest(self, scope: str, vector: Vector, limit: int) -> Asking:
        """See `Shelf.nearest`."""
        if not (yield from self._there()):
            return []
        self._check(vector)
        arguments = {"query": vector.tolist(), "query_filter": _of(scope), "limit": limit, "with_payload": True}
        response = yield Call("query_points", arguments)
        return [point.payload["record"] for point in response.points]

    def write(self, scope: str, key: str, record: Row, vector: Vector | None = None) -> Asking:
        """See `Shelf.write`."""
        if not (yield from self._there()):
            if vector is None:
                return
            yield from self._make(len(vector))
        if vector is None:
            vector = np.eye(1, self._size, dtype=np.float32)[0]
        self._check(vector)
        payload = {"scope": scope, "key": key, "record": record}
        point = models.PointStruct(id=_point(key), vector=vector.tolist(), payload=payload)
        yield Call("upsert", {"points": [point], "wait": True})

    def erase(self, scope: str, keys: Sequence[str]) -> Asking:
        """See `Shelf.erase`."""
        if keys and (yield from self._there()):
            yield Call("delete", {"points_selector": [_point(key) for key in keys], "wait": True})

    def size(self, scope: str) -> Asking:
        """See `Shelf.size`."""
        if not (yield from self._there()):
            return 0
        result = yield Call("count", {"count_filter": _of(scope), "exact": True})
        return result.count

    def everything(self, scope: str | None = None) -> Asking:
        """See `Shelf.everything`."""
        found: list[tuple[str, str, Row]] = []
        if not (yield from self._there()):
            return found
        offset = None
        while True:
            arguments = {"scroll_filter": _of(scope) if scope else None, "limit": PAGE, "offset": offset}
            points, offset = yield Call("scroll", arguments | {"with_payload": True})
            found += [(point.payload["scope"], point.payload["key"], point.payload["record"]) for point in points]
            if offset is None:
                return found

    def _there(self) -> Asking:
        """Say whether the collection has been made, by this process or another."""
        if not self._size and (yield Call("collection_exists", {})):
            info = yield Call("get_collection", {})
            self._size = info.config.params.vectors.size
        return bool(self._size)

    def _check(self, vector: Vector) -> None:
        if len(vector) != self._size:
            raise WrongSizeError(
                f"its collection {self.store.collection_name!r} holds vectors of {self._size} dimensions, the query's "
                f"has {len(vector)}: give each embedding model a memory of its own"
            )

    def _make(self, size: int) -> Asking:
        vectors = models.VectorParams(size=size, distance=models.Distance.COSINE)
        try:
            yield Call("create_collection", {"vectors_config": vectors})
        except Exception:
            # Another process may have made it at the same moment.
            if not (yield from self._there()):
                raise
        else:
            self._size = size
            schema = models.PayloadSchemaType.KEYWORD
            yield Call("create_payload_index", {"field_name": "scope", "field_schema": schema})


def shelf_on(store: BaseKVStore | QdrantVectorStore) -> Shelf:
    """Return the shelf for a store.

    :param store: a key-value store, or the vector store of a collection of its own.
    :return: the shelf.
    :raises ValueError: another kind of store.
    """
    if isinstance(store, BaseKVStore):
        return KeyValueShelf(store)
    if isinstance(store, QdrantVectorStore):
        return QdrantShelf(store)
    raise ValueError(
        f"store must be a LlamaIndex key-value store, or a QdrantVectorStore on a collection of its own, got "
        f"{type(store).__name__}"
    )


def _point(key: str) -> str:
    return str(UUID(key[:32]))


def _of(scope: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="scope", match=models.MatchValue(value=scope))])
