"""Operations on a Qdrant client, blocking or not."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import islice
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.async_qdrant_remote import AsyncQdrantRemote
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException

from llama_index_refine.locks import Lock, OfOneProcess
from llama_index_refine.qdrant.errors import refused
from llama_index_refine.qdrant.points import Points
from llama_index_refine.scheduling import at_once, each

headers: Callable[[dict[str, str]], AbstractContextManager[None]] | None
try:
    from qdrant_client.context_headers import headers
except ImportError:
    # Older clients' headers cannot be set for single requests.
    headers = None

# Calls a method of a client: its name, and its other arguments by name.
Call = Callable[..., Awaitable[Any]]

# Queries in one request to Qdrant. At two lists of a hundred nodes a query, an answer stays at some 20 MB.
BATCH = 64
# The most seconds that one request waits for a rate limit. Beyond that, the first search's nodes are better now.
PATIENCE = 5
# Calls of asynchronous clients over gRPC that wait for their answers at the same time.
THREADS = 32
# What httpx keeps open between requests unless it is told otherwise.
KEPT_CONNECTIONS = 20
# Names that resolve only where they were given: of containers, and of machines in one data centre.
LOCAL_NAMES = (".local", ".internal", ".svc", ".localhost")

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ClientOperation(ABC):
    """Work that makes calls of Qdrant's client, on the client that is there for the way it is run.

    :param store: the store that holds the clients.
    """

    store: QdrantVectorStore

    def run(self, items: Sequence[Any], client: QdrantClient | None = None) -> Sequence[Any]:
        """Call the blocking client.

        :param items: what to work on.
        :param client: another client than the store's.
        :raises ValueError: the store has only an asynchronous client.
        """
        client = client or self.store._client
        if client is None:
            raise ValueError(
                "the vector store has only an asynchronous client: call the asynchronous method (aretrieve), or give "
                "the store a blocking `client` too"
            )
        return at_once(self._shared(items, partial(_answered, client, self.store.collection_name, True)))

    async def arun(self, items: Sequence[Any]) -> Sequence[Any]:
        """Call the asynchronous client; where there is none, the blocking one in a worker thread."""
        client = self.store._aclient
        if client is None:
            return await asyncio.to_thread(self.run, items)
        if (twin := _twins.of(client)) is not None:
            work = partial(contextvars.copy_context().run, self.run, items, twin)
            return await asyncio.get_running_loop().run_in_executor(_twins.threads, work)
        return await self._shared(items, partial(_answered, client, self.store.collection_name, False))

    @abstractmethod
    async def work(self, items: Sequence[Any], call: Call) -> Sequence[Any]:
        """Make the calls, and return one result, or exception, for each item.

        :param items: what to work on, each of them once.
        :param call: calls the client. It is all that may be awaited here.
        """

    async def _shared(self, items: Sequence[Any], call: Call) -> Sequence[Any]:
        """Work on equal items once."""
        different = [item for at, item in enumerate(items) if item not in items[:at]]
        results = await self.work(different, call)
        return [results[different.index(item)] for item in items]


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
    """Run batches of queries in as few requests as can be. An item is a `Batch`, its result the points of each query.

    Those who wait for the same share it. Qdrant refuses a batch for one bad query in it. The others are then asked
    again by themselves, so that each item's exception is its own.
    """

    async def work(self, items: Sequence[Batch], call: Call) -> Sequence[Any]:
        """See `ClientOperation`."""
        results: list[Any] = []
        while len(results) < len(items):
            chunk: list[Batch] = []
            requests: list[models.QueryRequest] = []
            for item in items[len(results) :]:
                if chunk and len(requests) + len(item.requests) > item.most:
                    break
                chunk.append(item)
                requests += item.requests
            shared = {"consistency": chunk[0].consistency, "timeout": chunk[0].timeout}
            points: list[Points] = []
            try:
                for start in range(0, len(requests), chunk[0].most):
                    some = requests[start : start + chunk[0].most]
                    points += [found.points for found in await call("query_batch_points", requests=some, **shared)]
            except Exception as error:
                if not refused(error):
                    results += [error] * (len(items) - len(results))
                elif len(chunk) == 1:
                    results.append(error)
                else:
                    results += [(await self.work([item], call))[0] for item in chunk]
            else:
                rest = iter(points)
                results += [list(islice(rest, len(item.requests))) for item in chunk]
        return results


class CallOnce(ClientOperation):
    """Make each call once for all who wait for the same. An item is a method and its arguments."""

    async def work(self, items: Sequence[tuple[str, dict[str, Any]]], call: Call) -> Sequence[Any]:
        """See `ClientOperation`."""
        return await each(items, lambda item: call(item[0], **item[1]))


def as_it_is(client: Any) -> AbstractContextManager[None]:
    """Return a context in which a near server answers this client's requests uncompressed.

    Qdrant compresses what it answers over REST wherever the client allows it. Vectors written in digits hardly shrink
    to a third by that, and where the network is fast, packing and unpacking them takes several times as long as
    sending them.

    :param client: a Qdrant client of any kind.
    """
    remote: Any = getattr(client, "_client", None)
    if headers is None or getattr(remote, "_prefer_grpc", True) or not is_near(remote.rest_uri):
        return nullcontext()
    return headers({"Accept-Encoding": "identity"})


def is_near(address: str) -> bool:
    """Say whether a server is in this machine or in the same private network.

    :param address: its URL.
    """
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(LOCAL_NAMES)


async def _answered(client: Any, collection_name: str, blocks: bool, method: str, /, **arguments: Any) -> Any:
    """Call a client, and again where a rate limit says when, and that is soon."""
    left = PATIENCE
    while True:
        try:
            with as_it_is(client):
                if blocks:
                    return getattr(client, method)(collection_name, **arguments)
                return await _awaited(client, method, collection_name, arguments)
        except ResourceExhaustedResponse as error:
            # A server that says "at once" has not thought about it.
            seconds = max(error.retry_after_s, 1)
            if seconds > left:
                raise
            left -= seconds
            logger.info("Qdrant's rate limit is reached: asking again in %d s", seconds)
            if blocks:
                time.sleep(seconds)
            else:
                await asyncio.sleep(seconds)


async def _awaited(client: AsyncQdrantClient, method: str, collection_name: str, arguments: dict[str, Any]) -> Any:
    """Call an asynchronous client over REST from whatever event loop is running.

    Connections belong to the event loop that opened them. The client finds out when it uses one whose loop is closed,
    and drops it, so that the next attempt has another.
    """
    for attempt in range(KEPT_CONNECTIONS + 1):
        try:
            return await getattr(client, method)(collection_name, **arguments)
        except ResponseHandlingException as error:
            lost = isinstance(error.source, RuntimeError) and "loop is closed" in str(error.source)
            if not lost or attempt == KEPT_CONNECTIONS:
                raise
    raise AssertionError("the last attempt returns or raises")


class _Twins(OfOneProcess):
    """Blocking clients with the options of asynchronous ones over gRPC, and the threads that call them.

    gRPC's asynchronous channels serve one event loop, and a process must not have gRPC in two event loops at once: they
    share one queue of what has arrived, and take each other's answers out of it (grpc/grpc issues 25364, 36096).
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()
        self.after_fork()

    def after_fork(self) -> None:
        """See `OfOneProcess.after_fork`."""
        self._of_client: WeakKeyDictionary[AsyncQdrantClient, QdrantClient | None] = WeakKeyDictionary()
        self.threads = ThreadPoolExecutor(THREADS, "qdrant-grpc")

    def of(self, client: AsyncQdrantClient) -> QdrantClient | None:
        """Return a client's twin; None for one over REST, or with a token provider that has to be awaited.

        :raises RuntimeError: the client was closed.
        """
        remote = client._client
        if not isinstance(remote, AsyncQdrantRemote) or not client.init_options["prefer_grpc"]:
            return None
        if remote.closed:
            raise RuntimeError("the AsyncQdrantClient was closed: make a new client, and a new retriever on it")
        with self._lock:
            if client not in self._of_client:
                options = client.init_options | {"check_compatibility": False}
                provider = options.get("auth_token_provider")
                waits = any(map(inspect.iscoroutinefunction, (provider, getattr(provider, "__call__", None))))  # noqa: B004
                self._of_client[client] = None if waits else QdrantClient(**options)
            return self._of_client[client]


_twins = _Twins()
