"""Operations on a Qdrant client, blocking or not."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse

from llama_index_refine.qdrant.compression import as_it_is
from llama_index_refine.qdrant.errors import refused
from llama_index_refine.qdrant.loops import awaited
from llama_index_refine.steps import answered, at_once

# Queries in one request to Qdrant. At two lists of a hundred nodes a query, an answer stays at some 20 MB.
BATCH = 64
# The most seconds that one request waits for a rate limit. Beyond that, the first search's nodes are better now.
PATIENCE = 5

logger = logging.getLogger(__name__)


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
            with as_it_is(client):
                return getattr(client, call.method)(self.store.collection_name, **call.arguments)

        async def wait(seconds: float) -> None:
            time.sleep(seconds)

        return at_once(answered(self._calls(items), _patient(ask, wait)))

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        """Call the asynchronous client; where there is none, the blocking one in a worker thread."""
        client = self.store._aclient
        if client is None:
            return await asyncio.to_thread(self.run, items)

        async def ask(call: Call) -> Any:
            with as_it_is(client):
                return await awaited(client, call.method, self.store.collection_name, call.arguments)

        return await answered(self._calls(items), _patient(ask, asyncio.sleep))

    @abstractmethod
    def _calls(self, items: Sequence[Any]) -> Calls:
        """Yield the calls, are sent their answers, and return one result for each item."""


@dataclass(frozen=True)
class Batch:
    """Queries that belong together.

    :param requests: the queries.
    :param consistency: Qdrant's read consistency.
    :param timeout: seconds that Qdrant may take.
    :param most: how many of them may be sent at once.
    """

    requests: list[models.QueryRequest]
    consistency: Any = None
    timeout: int | None = None
    most: int = BATCH


class QueryPoints(ClientOperation):
    """Run batches of queries in as few requests as can be. An item is a `Batch`, its result a list of `QueryResponse`.

    Qdrant refuses a batch for one bad query in it. The others are then asked again by themselves, so that each item's
    exception is its own.
    """

    def _calls(self, items: Sequence[Batch]) -> Calls:
        results: list[Any] = []
        for chunk in _chunks(items):
            try:
                answers = yield from _queried(chunk)
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
        answers = yield from _queried(items[:1])
        return [[answer.points for answer in answers]] * len(items)


class RetrievePoints(ClientOperation):
    """Fetch points by id. An item is the keyword arguments of `retrieve`, its result a list of `Record`."""

    def _calls(self, items: Sequence[dict[str, Any]]) -> Calls:
        results: list[Any] = []
        for item in items:
            results.append((yield Call("retrieve", item)))
        return results


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


def _patient(
    ask: Callable[[Call], Awaitable[Any]], wait: Callable[[float], Awaitable[None]]
) -> Callable[[Call], Awaitable[Any]]:
    """Ask again where a rate limit says when, and that is soon."""

    async def patiently(call: Call) -> Any:
        left = PATIENCE
        while True:
            try:
                return await ask(call)
            except ResourceExhaustedResponse as error:
                # A server that says "at once" has not thought about it.
                seconds = max(error.retry_after_s, 1)
                if seconds > left:
                    raise
                left -= seconds
                logger.info("Qdrant's rate limit is reached: asking again in %d s", seconds)
                await wait(seconds)

    return patiently


def _queried(items: Sequence[Batch]) -> Calls:
    """Send the queries of some batches, in as few requests as may be."""
    requests = [request for item in items for request in item.requests]
    shared = {"consistency": items[0].consistency, "timeout": items[0].timeout}
    answers: list[Any] = []
    for start in range(0, len(requests), items[0].most):
        some = requests[start : start + items[0].most]
        answers += yield Call("query_batch_points", {"requests": some, **shared})
    return answers


def _chunks(items: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
    start, size = 0, 0
    for at, item in enumerate(items):
        if at > start and size + len(item.requests) > item.most:
            yield items[start:at]
            start, size = at, 0
        size += len(item.requests)
    if items:
        yield items[start:]
