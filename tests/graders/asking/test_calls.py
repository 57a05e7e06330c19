"""The gate that LLM calls go through, where the tests of the teachers do not reach."""

from __future__ import annotations

import asyncio
import gc

import pytest

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.calls import Call, Calls
from llama_index_refine.graders.base import GraderError


class RefusedError(Exception):
    status_code = 401


async def test_calls_that_fail_as_another_ends_them_are_not_reported_as_forgotten():
    def failing_after(turns: int) -> Call[float]:
        async def fail() -> float:
            for _ in range(turns):
                await asyncio.sleep(0)
            raise RefusedError

        return Call(fail)

    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["message"]))
    # One of them fails in the very turn of the event loop in which the first one's failure cancels it.
    calls = [failing_after(turns) for turns in range(8)]
    with pytest.raises(GraderError):
        await Calls(retries=0, on_error="raise").gather(calls, Account())
    for _ in range(20):
        await asyncio.sleep(0)
    gc.collect()
    assert not reported
