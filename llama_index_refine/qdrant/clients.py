"""Operations on a Qdrant client, blocking or not."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from llama_index_refine.qdrant.errors import refused
from llama_index_refine.qdrant.loops import awaited
from llama_index_refine.steps import at_once

# Queries in one request to Qdrant. At two lists of a hundred nodes a query, an answer stays at some 20 MB.
BATCH = 64


@dataclass(frozen=True)
class Call:
    """One call of a client: the method, and its arguments after the collection's name."""

    method: str
    arguments: dict[str, Any]


Calls = Generator[Call, Any, list[Any]]


@dataclass(eq=False)
class ClientOperation(ABC):
    """Some calls of Qdrant's client, on the client that is there for the way it is called.

    :param store: the store that holds the clients.
    """

    store: QdrantVectorStore

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """Call the blocking client.

        :raises ValueError: the store has only an asynchronous client.
        """
        client = self.store._client
        if client is None:
            raise ValueError(
                "the vector store has only an asynchronous client: call the asynchronous method (aretrieve), or give "
                "the store a blocking `client` too"
            )

        async def ask(call: Call) -> Any:
            return getattr(client, call.method)(self.store.collection_name, **call.arguments)

        return at_once(self._answered(items, ask))

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        """Call the asynchronous client; where there is none, the blocking one in a worker thread."""
        client = self.store._aclient
        if client is None:
            return await asyncio.to_thread(self.run, items)

        async def ask(call: Call) -> Any:
            return await awaited(client, call.method, self.store.collection_name, call.arguments)

        return await self._answered(items, ask)

    async def _answered(self, items: Sequence[Any], ask: Callable[[Call], Awaitable[Any]]) -> Sequence[Any]:
        calls = self._calls(items)
        try:
            call = next(calls)
            while True:
                try:
                    answer = await ask(call)
                except Exception as error:
                    call = calls.throw(error)
                else:
                    call = calls.send(answer)
        except StopIteration as end:
            results: list[Any] = end.value
            return results

    @abstractmethod
    def _calls(self, items: Sequence[Any]) -> Calls:
        """Yield the calls, are sent their answers, and return one result for each item."""


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
    """Run batches of queries in as few requests as can be. An item is a `Batch`, its result a list of `QueryResponse`.

    Qdrant refuses a batch for one bad query in it. The others are then asked again by themselves, so that each item's
    exception is its own.
    """

    def _calls(self, items: Sequence[Batch]) -> Calls:
        results: list[Any] = []
        for chunk in _chunks(items):
            try:
                answers = yield _query(chunk)
            except Exception as error:
                if not refused(error):
                    return results + [error] * (len(items) - len(results))
                if len(chunk) == 1:
                    results.append(error)
                    continue
                for item in chunk:
                    results.append((yield from self._calls([item]))[0])
            else:
                rest = iter(answers)
                results += [[next(rest) for _ in item.requests] for item in chunk]
        return results


class SamplePoints(ClientOperation):
    """Run one batch of queries on behalf of all who wait for it. The result is a list of lists of points."""

    def _calls(self, items: Sequence[Batch]) -> Calls:
        answers = yield _query(items[:1])
        return [[answer.points for answer in answers]] * len(items)


class CountPoints(ClientOperation):
    """Count points for all who wait for it. An item is the keyword arguments of `count`, the result a number."""

    def _calls(self, items: Sequence[dict[str, Any]]) -> Calls:
        result = yield Call("count", items[0])
        return [result.count] * len(items)


class DescribeCollection(ClientOperation):
    """Read the collection's configuration. The result is a `CollectionInfo`."""

    def _calls(self, items: Sequence[Any]) -> Calls:
        info = yield Call("get_collection", {})
        return [info] * len(items)


def _query(items: Sequence[Batch]) -> Call:
    requests = [request for item in items for request in item.requests]
    arguments = {"requests": requests, "consistency": items[0].consistency, "timeout": items[0].timeout}
    return Call("query_batch_points", arguments)


def _chunks(items: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
    start, size = 0, 0
    for at, item in enumerate(items):
        if at > start and size + len(item.requests) > BATCH:
            yield items[start:at]
            start, size = at, 0
        size += len(item.requests)
    if items:
        yield items[start:]
