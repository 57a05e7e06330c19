"""Teachers in forked and spawned processes, and in several event loops."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.custom import CustomLLM
from llama_index.llms.openai import OpenAI

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.feedback import FeedbackGrader
from llama_index_refine.graders.listwise import ListwiseGrader
from llama_index_refine.graders.llm import LLMGrader, ScaleGrader
from llama_index_refine.graders.openai import OpenAIGrader
from llama_index_refine.locks import Lock
from tests.chat_server import yes
from tests.graders.conftest import NODES, QUERY
from tests.graders.test_llm import Picky

GRADES = [0.9, 0.1, 0.9]

MakeGrader = Callable[[str], BaseGrader]


def openai_grader(url: str, **options) -> BaseGrader:
    return OpenAIGrader("m", url, "k", retries=0, **options)


def llm_grader(url: str, **options) -> BaseGrader:
    return LLMGrader(OpenAI(model="gpt-4o-mini", api_base=url, api_key="k"), retries=0, **options)


def grade_into(results, grader: BaseGrader, asynchronous: bool) -> None:
    results.put(list(asyncio.run(grader.agrade(QUERY, NODES)) if asynchronous else grader.grade(QUERY, NODES)))


def graded_in(method: str, grader: BaseGrader, asynchronous: bool = False) -> list[float | None]:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=grade_into, args=(results, grader, asynchronous), daemon=True)
    child.start()
    try:
        return results.get(timeout=120)
    finally:
        child.kill()
        child.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("make", [openai_grader, llm_grader])
def test_a_forked_process_is_not_held_up_by_what_its_parent_was_doing(make, asynchronous, chat_server):
    grader = make(chat_server.url, concurrency=3)
    assert grader.grade(QUERY, NODES) == pytest.approx(GRADES)
    grade, out = chat_server.reply, threading.Event()

    def slow_for_the_parent(question):
        if chat_server.calls <= 6:
            if chat_server.open_now == 3:
                out.set()
            return replace(grade(question), delay=60)
        return grade(question)

    chat_server.reply = slow_for_the_parent
    asking = threading.Thread(target=grader.grade, args=(QUERY, NODES), daemon=True)
    asking.start()
    assert out.wait(60)
    assert graded_in("fork", grader, asynchronous) == pytest.approx(GRADES)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_what_is_held_at_a_fork_is_free_in_the_child():
    lock = Lock()
    context = multiprocessing.get_context("fork")
    free = context.Event()

    def work() -> None:
        with lock:
            free.set()

    with lock:
        child = context.Process(target=work, daemon=True)
        child.start()
    assert free.wait(60)
    child.kill()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        openai_grader,
        llm_grader,
        lambda url: ScaleGrader(Picky()),
        lambda url: ListwiseGrader(Picky(), both_orders=True),
        lambda url: CachedGrader(openai_grader(url)),
        lambda url: FeedbackGrader({"q": {"1": 1.0}}, openai_grader(url)),
    ],
    ids=["openai", "llm", "scale", "listwise", "cached", "feedback"],
)
def test_a_teacher_comes_out_of_a_pickle(make: MakeGrader, used: bool, chat_server):
    grader = make(chat_server.url)
    if used:
        grader.grade(QUERY, NODES)
        asyncio.run(grader.agrade(QUERY, NODES))
    copy = pickle.loads(pickle.dumps(grader))
    assert copy.grade(QUERY, NODES) == grader.grade(QUERY, NODES)


@pytest.mark.filterwarnings("ignore")
def test_a_used_teacher_grades_in_a_spawned_process(chat_server):
    grader = openai_grader(chat_server.url)
    grader.grade(QUERY, NODES)
    assert graded_in("spawn", grader) == pytest.approx(GRADES)


@pytest.mark.parametrize("make", [openai_grader, llm_grader])
def test_each_asyncio_run_has_connections_of_its_own(make, chat_server):
    chat_server.reply = lambda question: yes(0.9)
    grader = make(chat_server.url)
    for _ in range(3):
        account = Account()
        with account.active():
            assert asyncio.run(grader.agrade(QUERY, NODES)) == pytest.approx([0.9] * 3)
        assert (account.calls, account.failures) == (3, [])


class SyncOnly(Picky):
    """An LLM that has asynchronous methods for show."""

    async def achat(self, messages: list[ChatMessage]) -> ChatResponse:
        raise NotImplementedError("there is no asynchronous chat here")


class WithItsOwnClient(CustomLLM):
    """An LLM as some integrations have it: one asynchronous HTTP client for good."""

    url: str
    _client: Any = PrivateAttr(default_factory=httpx.AsyncClient)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, model_name="m")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        raise AssertionError

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        raise AssertionError

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._read(httpx.post(f"{self.url}/chat/completions", json=self._body(messages)))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._read(await self._client.post(f"{self.url}/chat/completions", json=self._body(messages)))

    def _body(self, messages: Sequence[ChatMessage]) -> dict[str, Any]:
        return {"model": "m", "messages": [{"role": one.role.value, "content": one.content} for one in messages]}

    def _read(self, response: httpx.Response) -> ChatResponse:
        content = response.json()["choices"][0]["message"]["content"]
        return ChatResponse(message=ChatMessage(role="assistant", content=content))


def test_a_client_that_cannot_be_copied_survives_its_event_loop(chat_server):
    account = Account()
    grader = LLMGrader(WithItsOwnClient(url=chat_server.url), retries=0)
    with account.active():
        for _ in range(4):
            assert asyncio.run(grader.agrade(QUERY, NODES)) == [1.0, 0.0, 1.0]
    assert account.failures == []


class Working(Picky):
    """An LLM whose coroutine works and never waits, as some integrations have it."""

    threads: set[str] = Field(default_factory=set)

    async def achat(self, messages: Sequence[ChatMessage]) -> ChatResponse:
        return self.chat(messages)

    def chat(self, messages: Sequence[ChatMessage]) -> ChatResponse:
        self.threads.add(threading.current_thread().name)
        time.sleep(0.06)
        return super().chat(messages)


async def test_an_llm_that_holds_up_the_event_loop_is_called_in_threads_from_then_on():
    llm = Working()
    grader = LLMGrader(llm, retries=0)
    await grader.agrade(QUERY, NODES[:1])
    llm.threads.clear()
    assert await grader.agrade(QUERY, NODES) == [1.0, 0.0, 0.0]
    assert llm.threads == {"llama-index-refine-call"}


async def test_an_llm_without_asynchronous_methods_is_called_in_threads():
    grader = LLMGrader(SyncOnly(), retries=0)
    assert await grader.agrade(QUERY, NODES) == [1.0, 0.0, 0.0]
    assert await grader.agrade(QUERY, NODES) == [1.0, 0.0, 0.0]
    assert await asyncio.to_thread(grader.grade, QUERY, NODES) == [1.0, 0.0, 0.0]
