"""Operations on a Qdrant client, blocking or not."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models


@dataclass(eq=False)
class ClientOperation(ABC):
    """One method of Qdrant's client, on the client that is there for the way it is called.

    :param store: the store that holds the clients.
    """

    store: QdrantVectorStore

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """Call the blocking client.

        :raises ValueError: the store has only an asynchronous client.
        """
        client: QdrantClient | None = self.store._client
        if client is None:
            raise ValueError(
                "vector_store has only an asynchronous client: call aretrieve, or give QdrantVectorStore a `client` too"
            )
        return self._blocking(client, items)

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        """Call the asynchronous client; where there is none, the blocking one in a worker thread."""
        aclient: AsyncQdrantClient | None = self.store._aclient
        if aclient is None:
            return await asyncio.to_thread(self.run, items)
        return await self._awaiting(aclient, items)

    @abstractmethod
    def _blocking(self, client: QdrantClient, items: Sequence[Any]) -> Sequence[Any]: ...

    @abstractmethod
    async def _awaiting(self, client: AsyncQdrantClient, items: Sequence[Any]) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Batch:
    """Queries that belong together.

    :param requests: the queries.
    :param consistency: Qdrant's read consistency.
    :param timeout: seconds that Qdrant may take.
    """

    requests: list[models.QueryRequest]
    consistency: Any = None
    timeout: int | None = None


class QueryPoints(ClientOperation):
    """Run batches of queries in one request. An item is a `Batch`, its result a list of `QueryResponse`."""

    def _blocking(self, client: QdrantClient, items: Sequence[Batch]) -> Sequence[Any]:
        return _split(items, client.query_batch_points(self.store.collection_name, **_merged(items)))

    async def _awaiting(self, client: AsyncQdrantClient, items: Sequence[Batch]) -> Sequence[Any]:
        return _split(items, await client.query_batch_points(self.store.collection_name, **_merged(items)))


class FetchPoints(ClientOperation):
    """Fetch points by id. An item is the keyword arguments of `retrieve`, its result a list of `Record`."""

    def _blocking(self, client: QdrantClient, items: Sequence[dict[str, Any]]) -> Sequence[Any]:
        return [client.retrieve(self.store.collection_name, **item) for item in items]

    async def _awaiting(self, client: AsyncQdrantClient, items: Sequence[dict[str, Any]]) -> Sequence[Any]:
        return await asyncio.gather(*(client.retrieve(self.store.collection_name, **item) for item in items))


class CountPoints(ClientOperation):
    """Count points. An item is the keyword arguments of `count`, its result a number."""

    def _blocking(self, client: QdrantClient, items: Sequence[dict[str, Any]]) -> Sequence[Any]:
        return [client.count(self.store.collection_name, **item).count for item in items]

    async def _awaiting(self, client: AsyncQdrantClient, items: Sequence[dict[str, Any]]) -> Sequence[Any]:
        counts = await asyncio.gather(*(client.count(self.store.collection_name, **item) for item in items))
        return [result.count for result in counts]


class DescribeCollection(ClientOperation):
    """Read the collection's configuration. The result is a `CollectionInfo`."""

    def _blocking(self, client: QdrantClient, items: Sequence[Any]) -> Sequence[Any]:
        return [client.get_collection(self.store.collection_name)] * len(items)

    async def _awaiting(self, client: AsyncQdrantClient, items: Sequence[Any]) -> Sequence[Any]:
        return [await client.get_collection(self.store.collection_name)] * len(items)


def _merged(items: Sequence[Batch]) -> dict[str, Any]:
    requests = [request for item in items for request in item.requests]
    return {"requests": requests, "consistency": items[0].consistency, "timeout": items[0].timeout}


def _split(items: Sequence[Batch], responses: Sequence[Any]) -> list[Any]:
    rest = iter(responses)
    return [[next(rest) for _ in item.requests] for item in items]
