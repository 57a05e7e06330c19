"""Coroutines from synchronous code, blocking calls from coroutines."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from llama_index_refine.graders.asking.loop import arun, holds_a_loop, in_thread, is_ours, run

VARIABLE: ContextVar[str] = ContextVar("variable")


async def value() -> str:
    return VARIABLE.get()


def test_run_keeps_context_variables():
    VARIABLE.set("outside")
    assert run(value()) == "outside"


async def test_run_works_inside_a_loop():
    VARIABLE.set("inside")
    assert run(value()) == "inside"


async def test_coroutines_of_any_loop_run_in_ours_with_their_context():
    VARIABLE.set("theirs")
    loops = {await arun(loop()) for _ in range(3)}
    assert await arun(value()) == "theirs"
    assert loops == {run(loop())} != {asyncio.get_running_loop()}
    assert asyncio.run_coroutine_threadsafe(arun(value()), loops.pop()).result(60) == "theirs"


async def loop() -> asyncio.AbstractEventLoop:
    assert is_ours()
    return asyncio.get_running_loop()


async def test_a_cancellation_is_handed_in():
    begun, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    waiting = asyncio.create_task(arun(wait()))
    await asyncio.to_thread(begun.wait, 60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(ended.wait, 60)


async def held() -> bool:
    return await in_thread(holds_a_loop)


async def test_who_blocks_a_loop_is_known_in_every_thread_behind_it():
    assert run(held())
    assert not await asyncio.to_thread(run, held())


def test_run_raises_what_is_raised():
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(fail())


async def test_in_thread_keeps_context_variables_and_raises():
    VARIABLE.set("here")
    assert await in_thread(VARIABLE.get) == "here"
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_a_thread_can_be_given_up():
    release = threading.Event()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(in_thread(release.wait), 0.01)
    release.set()


async def test_threads_do_not_keep_the_interpreter_alive():
    release = threading.Event()
    waiting = in_thread(release.wait)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("llama-index-refine"))
    release.set()
    assert await waiting
