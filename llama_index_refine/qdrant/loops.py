"""One asynchronous client in one event loop after another, or in several threads' at once.

Connections belong to the event loop that opened them. Over REST the client finds that out when it uses one, and drops
it. Over gRPC it does not, so that each event loop after the first is given channels of its own.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any
from weakref import WeakKeyDictionary

from qdrant_client import AsyncQdrantClient
from qdrant_client.async_qdrant_remote import AsyncQdrantRemote
from qdrant_client.http.exceptions import ResponseHandlingException

from llama_index_refine.locks import Lock

# What httpx keeps open between requests unless it is told otherwise.
_KEPT_CONNECTIONS = 20
_STUBS = ("points", "collections", "snapshots", "root")


async def awaited(client: Any, method: str, collection_name: str, arguments: dict[str, Any]) -> Any:
    """Make a call, past what the client has kept of event loops that are closed by now.

    :param client: the asynchronous client.
    :param method: its method.
    :param collection_name: the collection.
    :param arguments: what else the method takes.
    :return: the answer.
    """
    call = getattr(_of_this_loop(client), method)
    for _ in range(_KEPT_CONNECTIONS):
        try:
            return await call(collection_name, **arguments)
        except ResponseHandlingException as error:
            # The client drops the connection that failed, so that the next attempt has another.
            if not isinstance(error.source, RuntimeError) or "loop is closed" not in str(error.source):
                raise
    return await call(collection_name, **arguments)


_copies: WeakKeyDictionary[AsyncQdrantClient, dict[asyncio.AbstractEventLoop, AsyncQdrantClient]]
_copies = WeakKeyDictionary()
_copies_lock = Lock()


def _of_this_loop(client: Any) -> Any:
    """Return the client, or a copy with channels of its own where the client's belong to another event loop."""
    remote = getattr(client, "_client", None)
    if not isinstance(remote, AsyncQdrantRemote) or not remote._prefer_grpc:
        return client
    if remote.closed:
        raise RuntimeError("the AsyncQdrantClient was closed: make another client, and a retriever on it")
    loop = asyncio.get_running_loop()
    if all(channel._loop is loop for channel in remote._grpc_channel_pool):
        return client
    with _copies_lock:
        copies = _copies.setdefault(client, {})
        for ended in [other for other in copies if other.is_closed()]:
            del copies[ended]
        if loop not in copies:
            copies[loop] = _without_channels(client, remote)
        return copies[loop]


def _without_channels(client: AsyncQdrantClient, remote: AsyncQdrantRemote) -> AsyncQdrantClient:
    fresh = copy.copy(remote)
    fresh._grpc_channel_pool = []
    for stub in _STUBS:
        setattr(fresh, f"_grpc_{stub}_client_pool", None)
    copied = copy.copy(client)
    copied._client = fresh
    return copied
