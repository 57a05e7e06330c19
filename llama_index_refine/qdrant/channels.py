"""One asynchronous client's gRPC calls from any event loop.

Channels belong to the event loop that opened them, so that each is given some of its own. And a process must not have
gRPC in two event loops at once: they share one queue of what has arrived, and take each other's answers out of it. That
is a segmentation fault in the end (grpc/grpc issues 25364, 36096). So one running event loop makes the calls of all.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from qdrant_client import AsyncQdrantClient

from llama_index_refine.locks import Lock, OfOneProcess

# Seconds without a sign of life after which an event loop is taken for blocked: by whoever waits for this call, maybe.
_SILENCE = 0.5
_STUBS = ("points", "collections", "snapshots", "root")

_copies: WeakKeyDictionary[AsyncQdrantClient, dict[asyncio.AbstractEventLoop, AsyncQdrantClient]]
_copies = WeakKeyDictionary()
_copies_lock = Lock()


class _Turn(OfOneProcess):
    """The event loop that makes the process's calls."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def after_fork(self) -> None:
        """See `OfOneProcess.after_fork`."""
        self._loop = None

    def of(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """Return the event loop whose turn it is: the given one, if no other is running."""
        with self._lock:
            if self._loop is None or not self._loop.is_running():
                self._loop = loop
            return self._loop

    def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let another take over from this one."""
        with self._lock:
            if self._loop is loop:
                self._loop = None


_turn = _Turn()


async def called(client: AsyncQdrantClient, call: Callable[[AsyncQdrantClient], Awaitable[Any]]) -> Any:
    """Make a call that only reads, in the event loop whose turn it is.

    :param client: a client that prefers gRPC.
    :param call: what to call of it, or of a copy of it.
    :return: the answer.
    :raises RuntimeError: the client was closed.
    """
    here = asyncio.get_running_loop()
    while (turn := _turn.of(here)) is not here:
        try:
            return await _called_in(turn, client, call)
        except _GoneError:
            _turn.end(turn)
    return await call(_of_this_loop(client))


class _GoneError(Exception):
    """The event loop whose turn it was has ended, or is blocked."""


async def _called_in(
    loop: asyncio.AbstractEventLoop, client: AsyncQdrantClient, call: Callable[[AsyncQdrantClient], Awaitable[Any]]
) -> Any:
    async def there() -> Any:
        return await call(_of_this_loop(client))

    coroutine = there()
    try:
        asked = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError as error:
        coroutine.close()
        raise _GoneError from error
    answer = asyncio.wrap_future(asked)
    try:
        while not answer.done():
            heard = threading.Event()
            loop.call_soon_threadsafe(heard.set)
            await asyncio.wait([answer], timeout=_SILENCE)
            if not answer.done() and not heard.is_set():
                raise _GoneError
    except RuntimeError as error:
        raise _GoneError from error
    finally:
        asked.cancel()
    # An event loop that ends cancels what it has begun.
    if answer.cancelled():
        raise _GoneError
    return answer.result()


def _of_this_loop(client: AsyncQdrantClient) -> AsyncQdrantClient:
    """Return the client, or a copy with channels of its own where the client's belong to another event loop."""
    remote: Any = client._client
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


def _without_channels(client: AsyncQdrantClient, remote: Any) -> AsyncQdrantClient:
    fresh = copy.copy(remote)
    fresh._grpc_channel_pool = []
    for stub in _STUBS:
        setattr(fresh, f"_grpc_{stub}_client_pool", None)
    copied = copy.copy(client)
    copied._client = fresh
    return copied
