"""The gate that LLM calls go through, where the tests of the teachers do not reach."""

from __future__ import annotations

import asyncio
import gc
import inspect

import pytest
from llama_index.core.llms import MockLLM

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.calls import CallOptions, Calls
from llama_index_refine.graders.base import GraderError
from llama_index_refine.graders.listwise import ListwiseGrader
from llama_index_refine.graders.llm import LLMGrader, ScaleGrader
from llama_index_refine.graders.openai import OpenAIGrader


class RefusedError(Exception):
    status_code = 401


class FailingAfter:
    """A question that is refused after some turns of the event loop."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    async def ask(self) -> list[float]:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        raise RefusedError

    def sent(self) -> frozenset[str]:
        return frozenset()

    def needless(self) -> None:
        return None


async def test_calls_that_fail_as_another_ends_them_are_not_reported_as_forgotten():
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["message"]))
    # One of them fails in the very turn of the event loop in which the first one's failure cancels it.
    calls = [FailingAfter(turns) for turns in range(8)]
    with pytest.raises(GraderError):
        await Calls(retries=0, on_error="raise").gather(calls, Account())
    for _ in range(20):
        await asyncio.sleep(0)
    gc.collect()
    assert not reported


def test_call_options_are_what_a_gate_takes():
    assert list(CallOptions.__annotations__) == list(inspect.signature(Calls).parameters)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: LLMGrader(MockLLM(), **options),
        lambda **options: ScaleGrader(MockLLM(), **options),
        lambda **options: ListwiseGrader(MockLLM(), **options),
        lambda **options: OpenAIGrader("m", **options),
    ],
    ids=["llm", "scale", "listwise", "openai"],
)
def test_every_teacher_that_asks_takes_call_options_and_names_the_wrong_one(make):
    make(**CallOptions(concurrency=2, timeout=3.0, retries=0, cooldown=1.0, on_error="raise"))
    wrong = {"concurrency": 0, "timeout": 0.0, "retries": -1, "cooldown": -1.0, "on_error": "shout", "cooldwon": 1.0}
    for name, value in wrong.items():
        with pytest.raises((TypeError, ValueError), match=name):
            make(**{name: value})
