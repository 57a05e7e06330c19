"""Where remembered queries are kept: a LlamaIndex key-value store, or a Qdrant collection of their own."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import numpy as np
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.locks import Lock, OfEach
from llama_index_refine.memory.remembered import Vector, vector_in
from llama_index_refine.qdrant.clients import Call, ClientOperation
from llama_index_refine.scheduling import at_once, each

Row = dict[str, Any]
# Records that one call lists.
PAGE = 256
# The scope of records that are no queries.
TEACHERS = "teachers"

_locks: OfEach[Lock] = OfEach(Lock)


class WrongSizeError(ValueError):
    """A query's vector does not go into a collection."""


class Records(ABC):
    """Records by scope and key. A key is 32 hexadecimal digits or more; a record is a dictionary that JSON can hold."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @abstractmethod
    async def read(self, scope: str, key: str) -> Row | None:
        """Return a record, None where there is none."""

    @abstractmethod
    async def nearest(self, scope: str, vector: Vector, limit: int) -> list[Row]:
        """Return records of a scope, those with the nearest vectors first."""

    @abstractmethod
    async def write(self, scope: str, key: str, record: Row, vector: Vector | None = None) -> None:
        """Write a record in the place of the one with its key; without a vector, `nearest` never finds it."""

    @abstractmethod
    async def erase(self, scope: str, keys: Sequence[str]) -> None:
        """Delete records."""

    @abstractmethod
    async def size(self, scope: str) -> int:
        """Return how many records a scope has."""

    @abstractmethod
    async def everything(self, scope: str | None = None) -> list[tuple[str, str, Row]]:
        """Return (scope, key, record) of all records, or of a scope's."""


class KeyValueRecords(Records):
    """Keeps each scope in a collection of its own of a key-value store, whose vectors are compared here."""

    NAME = "refinement_memory"

    async def read(self, scope: str, key: str) -> Row | None:
        """See `Records.read`."""
        record: Row | None = await self._call("get", key=key, collection=self._collection(scope))
        return record

    async def nearest(self, scope: str, vector: Vector, limit: int) -> list[Row]:
        """See `Records.nearest`."""
        rows = await self._call("get_all", collection=self._collection(scope))
        read = [(row, vector_in(row)) for row in rows.values()]
        known = [(row, there) for row, there in read if there is not None and there.shape == vector.shape]
        apart = [-(vector @ there) / max(float(np.linalg.norm(there)), 1e-12) for _, there in known]
        return [known[at][0] for at in np.argsort(apart, kind="stable")[:limit]]

    async def write(self, scope: str, key: str, record: Row, vector: Vector | None = None) -> None:
        """See `Records.write`."""
        if await self._call("get", key=scope, collection=self.NAME) is None:
            await self._call("put", key=scope, val={"scope": scope}, collection=self.NAME)
        await self._call("put", key=key, val=record, collection=self._collection(scope))

    async def erase(self, scope: str, keys: Sequence[str]) -> None:
        """See `Records.erase`."""
        for key in keys:
            await self._call("delete", key=key, collection=self._collection(scope))

    async def size(self, scope: str) -> int:
        """See `Records.size`."""
        return len(await self._call("get_all", collection=self._collection(scope)))

    async def everything(self, scope: str | None = None) -> list[tuple[str, str, Row]]:
        """See `Records.everything`."""
        scopes = [scope] if scope is not None else list(await self._call("get_all", collection=self.NAME))
        found = []
        for one in scopes:
            rows = await self._call("get_all", collection=self._collection(one))
            found += [(one, key, row) for key, row in rows.items()]
        return found

    def _collection(self, scope: str) -> str:
        return f"{self.NAME}_{scope}"


class QdrantRecords(Records):
    """Keeps all scopes in one Qdrant collection, which finds similar queries by their vectors.

    The collection is made when first written to, for vectors of that size.

    :param known: keeps that size under "dimensions" between calls; whoever has it empties it when a call has failed.
    """

    def __init__(self, call: Call, known: dict[str, int]) -> None:
        super().__init__(call)
        self._known = known

    async def read(self, scope: str, key: str) -> Row | None:
        """See `Records.read`."""
        if not await self._dimensions():
            return None
        points = await self._call("retrieve", ids=[_point(key)], with_payload=True)
        return next((record for there, _, record in map(_kept, points) if there == scope), None)

    async def nearest(self, scope: str, vector: Vector, limit: int) -> list[Row]:
        """See `Records.nearest`."""
        if not (dimensions := await self._dimensions()):
            return []
        _check(vector, dimensions)
        found = await self._call(
            "query_points", query=vector.tolist(), query_filter=_of(scope), limit=limit, with_payload=True
        )
        return [_kept(point)[2] for point in found.points]

    async def write(self, scope: str, key: str, record: Row, vector: Vector | None = None) -> None:
        """See `Records.write`."""
        dimensions = await self._dimensions() or (0 if vector is None else await self._made(len(vector)))
        if not dimensions:
            return
        if vector is None:
            vector = np.eye(1, dimensions, dtype=np.float32)[0]
        _check(vector, dimensions)
        payload = {"scope": scope, "key": key, "record": record}
        point = models.PointStruct(id=_point(key), vector=vector.tolist(), payload=payload)
        await self._call("upsert", points=[point], wait=True)

    async def erase(self, scope: str, keys: Sequence[str]) -> None:
        """See `Records.erase`."""
        if keys and await self._dimensions():
            await self._call("delete", points_selector=[_point(key) for key in keys], wait=True)

    async def size(self, scope: str) -> int:
        """See `Records.size`."""
        if not await self._dimensions():
            return 0
        result = await self._call("count", count_filter=_of(scope), exact=True)
        return int(result.count)

    async def everything(self, scope: str | None = None) -> list[tuple[str, str, Row]]:
        """See `Records.everything`."""
        found: list[tuple[str, str, Row]] = []
        offset, there = None, await self._dimensions()
        while there:
            points, offset = await self._call(
                "scroll", scroll_filter=_of(scope) if scope else None, limit=PAGE, offset=offset, with_payload=True
            )
            found += [row for row in map(_kept, points) if row[0] and row[1]]
            there = offset is not None
        return found

    async def _dimensions(self) -> int:
        """Return the size of its vectors, 0 where neither this process nor another has made the collection."""
        if "dimensions" not in self._known and await self._call("collection_exists"):
            info = await self._call("get_collection")
            self._known["dimensions"] = info.config.params.vectors.size
        return self._known.get("dimensions", 0)

    async def _made(self, size: int) -> int:
        vectors = models.VectorParams(size=size, distance=models.Distance.COSINE)
        try:
            await self._call("create_collection", vectors_config=vectors)
        except Exception:
            # Another process may have made it at the same moment.
            if not (there := await self._dimensions()):
                raise
            return there
        await self._call("create_payload_index", field_name="scope", field_schema=models.PayloadSchemaType.KEYWORD)
        self._known["dimensions"] = size
        return size


Work = Callable[[Records], Awaitable[Any]]


class Keeping:
    """Works on the records of a store. An item is a coroutine function of `Records`.

    :param store: a key-value store, or the vector store of a collection of its own.
    :param writing: whether records are written, which one does at a time: what is read, changed and written back by
        one must not be lost to another. It holds within a process; of two processes that change one query at the same
        moment, the later counts.
    :raises ValueError: another kind of store.
    """

    def __init__(self, store: BaseKVStore | QdrantVectorStore, writing: bool = False) -> None:
        if not isinstance(store, BaseKVStore | QdrantVectorStore):
            raise ValueError(
                "store must be a LlamaIndex key-value store, or a QdrantVectorStore on a collection of its own, got "
                f"{type(store).__name__}"
            )
        self._operation = _KeyValueWork(store) if isinstance(store, BaseKVStore) else _QdrantWork(store)
        self._writing = writing
        self._lock = _locks.of(store)

    def run(self, items: Sequence[Work]) -> Sequence[Any]:
        """Work, blocking. What goes wrong with one item is returned in its place."""
        with self._lock if self._writing else nullcontext():
            return self._operation.run(items)

    async def arun(self, items: Sequence[Work]) -> Sequence[Any]:
        """Work without blocking the event loop."""
        async with self._lock.held() if self._writing else nullcontext():
            return await self._operation.arun(items)


class _KeyValueWork:
    """Works on a key-value store. See `Keeping`."""

    def __init__(self, store: BaseKVStore) -> None:
        self._store = store

    def run(self, items: Sequence[Work]) -> Sequence[Any]:
        async def call(method: str, **arguments: Any) -> Any:
            return getattr(self._store, method)(**arguments)

        records = KeyValueRecords(call)
        return at_once(each(items, lambda item: item(records)))

    async def arun(self, items: Sequence[Work]) -> Sequence[Any]:
        async def call(method: str, **arguments: Any) -> Any:
            try:
                return await getattr(self._store, f"a{method}")(**arguments)
            except NotImplementedError:
                # As LlamaIndex's own stores for S3 and DynamoDB have it.
                return await asyncio.to_thread(getattr(self._store, method), **arguments)

        records = KeyValueRecords(call)
        return await each(items, lambda item: item(records))


class _QdrantWork(ClientOperation):
    """Works on a Qdrant collection. See `Keeping`."""

    def __init__(self, store: QdrantVectorStore) -> None:
        super().__init__(store)
        self._known: dict[str, int] = {}

    async def work(self, items: Sequence[Work], call: Call) -> Sequence[Any]:
        """See `ClientOperation`."""
        records = QdrantRecords(call, self._known)
        results = await each(items, lambda item: item(records))
        if any(isinstance(result, Exception) for result in results):
            # The collection may be gone, or another by now.
            self._known.clear()
        return results


def _check(vector: Vector, dimensions: int) -> None:
    if len(vector) != dimensions:
        raise WrongSizeError(
            f"its collection holds vectors of {dimensions} dimensions, the query's has {len(vector)}: give each "
            "embedding model a memory of its own"
        )


def _kept(point: Any) -> tuple[str, str, Row]:
    """Read a point's scope, key and record, empty ones where something else wrote it."""
    payload = point.payload or {}
    return payload.get("scope") or "", payload.get("key") or "", payload.get("record") or {}


def _point(key: str) -> str:
    return str(UUID(key[:32]))


def _of(scope: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key="scope", match=models.MatchValue(value=scope))])
