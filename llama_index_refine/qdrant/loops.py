"""One asynchronous client in one event loop after another, or in several threads' at once.

Connections belong to the event loop that opened them. Over REST the client finds that out when it uses one, and drops
it; over gRPC see `channels`.
"""

from __future__ import annotations

from typing import Any

from qdrant_client.async_qdrant_remote import AsyncQdrantRemote
from qdrant_client.http.exceptions import ResponseHandlingException

from llama_index_refine.qdrant.channels import called

# What httpx keeps open between requests unless it is told otherwise.
_KEPT_CONNECTIONS = 20


async def awaited(client: Any, method: str, collection_name: str, arguments: dict[str, Any]) -> Any:
    """Make a call, past what the client has kept of event loops that are closed by now.

    :param client: the asynchronous client.
    :param method: its method.
    :param collection_name: the collection.
    :param arguments: what else the method takes.
    :return: the answer.
    :raises RuntimeError: the client talks gRPC and was closed.
    """
    remote = getattr(client, "_client", None)
    if isinstance(remote, AsyncQdrantRemote) and remote._prefer_grpc:
        return await called(client, lambda mine: getattr(mine, method)(collection_name, **arguments))
    call = getattr(client, method)
    for _ in range(_KEPT_CONNECTIONS):
        try:
            return await call(collection_name, **arguments)
        except ResponseHandlingException as error:
            # The client drops the connection that failed, so that the next attempt has another.
            if not isinstance(error.source, RuntimeError) or "loop is closed" not in str(error.source):
                raise
    return await call(collection_name, **arguments)
