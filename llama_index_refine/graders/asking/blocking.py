"""Coroutines from synchronous code and blocking calls from coroutines; neither keeps the interpreter alive."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from llama_index_refine.locks import Lock

T = TypeVar("T")

_lock = Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def _private_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None or _thread is None or not _thread.is_alive():
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="llama-index-refine", daemon=True)
            _thread.start()
        return _loop


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, also where an event loop runs already, as in a notebook.

    It runs on one event loop in a thread of its own, shared by the process, with the caller's context variables.

    :param coroutine: what to run.
    :return: its result.
    :raises BaseException: whatever it raises; on an interrupt it is cancelled.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, _private_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def in_thread(function: Callable[..., T], *args: Any) -> Awaitable[T]:
    """Run a blocking function in a daemon thread of its own, with the caller's context variables.

    Unlike `asyncio.to_thread`, a function that never returns can be given up: nobody joins its thread.

    :param function: what to call.
    :param args: its arguments.
    :return: its result, to be awaited in the running event loop.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            result = context.run(function, *args)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()
    threading.Thread(target=work, name="llama-index-refine-call", daemon=True).start()
    return asyncio.wrap_future(future)


def has_running_loop() -> bool:
    """Whether the calling thread is inside an event loop, which a blocking call would hold up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
