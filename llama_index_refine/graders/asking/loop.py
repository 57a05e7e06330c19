"""The one event loop in which LLMs are asked, for blocking and for asynchronous callers alike.

It runs in a thread of its own that keeps no interpreter alive. Whoever asks from another loop, or from none, hands its
context variables in, and a cancellation on.
"""

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
_holds_a_loop: contextvars.ContextVar[bool] = contextvars.ContextVar("llama_index_refine_holds_a_loop", default=False)


def _ours() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        # A forked process has the loop and not its thread.
        if _loop is None or _thread is None or not _thread.is_alive():
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="llama-index-refine", daemon=True)
            _thread.start()
        return _loop


def is_ours() -> bool:
    """Whether the calling coroutine runs in this loop: for a blocking caller, unless it asks an LLM."""
    return threading.current_thread() is _thread


def holds_a_loop() -> bool:
    """Whether the caller blocks an event loop, in which others may be waiting for their turn."""
    return _holds_a_loop.get()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, also where an event loop runs already, as in a notebook.

    :param coroutine: what to run.
    :return: its result.
    :raises BaseException: whatever it raises; on an interrupt it is cancelled.
    """
    context = contextvars.copy_context()
    context.run(_holds_a_loop.set, holds_a_loop() or asyncio._get_running_loop() is not None)
    future = context.run(asyncio.run_coroutine_threadsafe, coroutine, _ours())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def arun(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in this loop for a coroutine of any loop.

    :param coroutine: what to run; cancelled where the caller is.
    :return: its result.
    """
    if is_ours():
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, _ours()))


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
            future.set_result(context.run(function, *args))
        except BaseException as error:
            future.set_exception(error)

    future.set_running_or_notify_cancel()
    threading.Thread(target=work, name="llama-index-refine-call", daemon=True).start()
    return asyncio.wrap_future(future)
