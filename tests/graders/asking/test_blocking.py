"""Coroutines from synchronous code, blocking calls from coroutines."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from llama_index_refine.graders.asking.blocking import has_running_loop, in_thread, run_blocking

VARIABLE: ContextVar[str] = ContextVar("variable")


async def value() -> str:
    return VARIABLE.get()


def test_run_blocking_keeps_context_variables():
    VARIABLE.set("outside")
    assert run_blocking(value()) == "outside"


async def test_run_blocking_works_inside_a_loop():
    VARIABLE.set("inside")
    assert has_running_loop()
    assert run_blocking(value()) == "inside"


def test_no_loop_runs_here():
    assert not has_running_loop()


def test_run_blocking_raises_what_is_raised():
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_blocking(fail())


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
