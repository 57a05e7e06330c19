"""LLMGrader through the real clients against a real server."""

from __future__ import annotations

import asyncio
import gc
import socket
from dataclasses import replace
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import MockLLM
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.asking.loop import run
from llama_index_refine.graders.llm import LLMGrader
from tests.chat_server import Question, Reply, error, yes
from tests.graders.conftest import NODES, QUERY


def approx(*values: float | None) -> list[Any]:
    return [pytest.approx(value, abs=1e-6) if value is not None else None for value in values]


def test_grades_by_log_probabilities(make_grader, chat_server):
    assert make_grader().grade(QUERY, NODES) == approx(0.9, 0.1, 0.9)
    assert chat_server.calls == 3
    body = chat_server.questions[0].body
    assert body["logprobs"] is True
    assert body["top_logprobs"] == 20


async def test_grades_asynchronously(make_grader):
    assert await make_grader().agrade(QUERY, NODES) == approx(0.9, 0.1, 0.9)


async def test_works_inside_a_running_loop(make_grader):
    assert make_grader().grade(QUERY, NODES) == approx(0.9, 0.1, 0.9)


def test_openai_like_and_settings(like, chat_server, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", like)
    assert LLMGrader().grade(QUERY, NODES) == approx(0.9, 0.1, 0.9)
    assert chat_server.questions[0].body["model"] == "local"


def test_settings_are_looked_up_late(like, llm, chat_server, monkeypatch):
    grader = LLMGrader()
    monkeypatch.setattr(Settings, "_llm", like)
    grader.grade(QUERY, NODES[:1])
    monkeypatch.setattr(Settings, "_llm", llm)
    grader.grade(QUERY, NODES[:1])
    assert [question.body["model"] for question in chat_server.questions] == ["local", "gpt-4o-mini"]


def test_no_llm_at_all_leaves_no_grades_and_a_reason(monkeypatch, caplog):
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    account = Account()
    with account.active():
        assert LLMGrader().grade(QUERY, NODES) == [None, None, None]
    assert "Settings.llm" in account.failures[0]
    assert len(account.failures) == 1


def test_instruction_and_own_prompt(make_grader, chat_server):
    grader = make_grader(instruction="Queries are claims.")
    grader.grade(QUERY, NODES[:1])
    assert "The task: Queries are claims." in chat_server.questions[0].prompt
    assert list(grader.get_prompts()) == ["grade_prompt"]
    grader.update_prompts({"grade_prompt": PromptTemplate("{instruction} {query}? {document} yes or no")})
    grader.grade(QUERY, NODES[:1])
    assert chat_server.questions[1].prompt.startswith("\nThe task: Queries are claims. how do cats purr? <document-")


def test_a_prompt_without_the_document_is_refused(make_grader):
    with pytest.raises(ValueError, match=r"\{document\}"):
        make_grader(prompt=PromptTemplate("{query}?"))
    with pytest.raises(ValueError, match=r"\{query\}"):
        make_grader().update_prompts({"grade_prompt": PromptTemplate("{document}?")})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concurrency", 0),
        ("timeout", 0),
        ("retries", -1),
        ("cooldown", -1),
        ("max_document_tokens", 0),
        ("on_error", "?"),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        LLMGrader(MockLLM(), **{name: value})


def test_long_documents_are_cut(make_grader, chat_server):
    make_grader(max_document_tokens=50).grade(QUERY, [TextNode(text="cats and dogs " * 10_000)])
    assert 90 < len(chat_server.questions[0].document.split()) * 2 <= 100


def test_empty_nodes_are_not_asked_about(make_grader, chat_server):
    assert make_grader().grade(QUERY, [TextNode(text=" \n"), *NODES[:1]]) == approx(None, 0.9)
    assert chat_server.calls == 1
    assert make_grader().grade(QUERY, []) == []


def test_without_log_probabilities_the_text_decides(make_grader, chat_server):
    chat_server.reply = lambda question: Reply(
        "Yes, because it is about cats" if "cats" in question.document else "No."
    )
    assert make_grader().grade(QUERY, NODES) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("top_logprobs must be at most 5", {"logprobs": True, "top_logprobs": 5, "max_tokens": 16}),
        ("logprobs is not supported by this model", {"max_tokens": 16}),
        ("Use 'max_completion_tokens' instead of 'max_tokens'", {"logprobs": True, "top_logprobs": 20}),
        ("bad request", {}),
    ],
)
def test_refused_options_are_left_out_from_then_on(make_grader, chat_server, message, left):
    def reply(question: Question) -> Reply:
        options = ("logprobs", "top_logprobs", "max_tokens")
        sent = {name: question.body[name] for name in options if name in question.body}
        return yes(0.9) if sent == left else error(400, message)

    chat_server.reply = reply
    grader = make_grader()
    assert None not in grader.grade(QUERY, NODES)
    before = chat_server.calls
    assert None not in grader.grade(QUERY, NODES)
    assert chat_server.calls == before + 3


def test_one_bad_document_does_not_cost_the_log_probabilities(make_grader, chat_server):
    chat_server.reply = lambda question: error(400) if "rain" in question.document else yes(0.9)
    grader = make_grader(concurrency=1)
    assert grader.grade(QUERY, [NODES[1], NODES[0], NODES[1]]) == approx(None, 0.9, None)
    assert grader.grade(QUERY, NODES[:1]) == approx(0.9)


def test_a_thinking_model_gets_room_to_think(make_grader, chat_server):
    def reply(question: Question) -> Reply:
        if "max_tokens" in question.body:
            return Reply("<think>\nOkay, the user wants", [{"<think>": 1.0}], finish_reason="length")
        return Reply("<think>\nOkay. No wait.</think>\n\nYes")

    chat_server.reply = reply
    assert make_grader().grade(QUERY, NODES[:1]) == [1.0]


class Picky(CustomLLM):
    """An LLM whose methods take no options at all."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False) -> CompletionResponse:
        return CompletionResponse(text="yes" if "<document" in prompt and "cats purr softly" in prompt else "no")

    def stream_complete(self, prompt: str, formatted: bool = False) -> Any:
        raise NotImplementedError


async def test_an_llm_that_takes_no_options():
    grader = LLMGrader(Picky())
    assert grader.grade(QUERY, NODES) == [1.0, 0.0, 0.0]
    assert await grader.agrade(QUERY, NODES) == [1.0, 0.0, 0.0]


async def test_an_echo_is_no_answer():
    grader = LLMGrader(MockLLM())
    assert await grader.agrade(QUERY, NODES) == [None, None, None]


def test_calls_and_tokens_are_charged(make_grader, chat_server):
    account = Account()
    with account.active():
        make_grader().grade(QUERY, NODES)
    assert account.calls == 3
    assert account.completion_tokens == 3
    assert account.prompt_tokens == sum(len(question.prompt.split()) for question in chat_server.questions)
    assert account.failures == []


def test_tokens_are_counted_where_the_server_does_not(make_grader, chat_server):
    chat_server.reply = lambda question: Reply("Yes", usage=False)
    account = Account()
    with account.active():
        make_grader().grade(QUERY, NODES[:1])
    assert account.prompt_tokens > 50
    assert account.completion_tokens == 1


def test_budget_of_calls(make_grader, chat_server):
    account = Account(Budget(calls=2))
    with account.active():
        grades = make_grader().grade(QUERY, NODES)
    assert grades == approx(0.9, 0.1, None)
    assert chat_server.calls == 2
    assert account.failures == ["the budget of 2 calls is used up"]


def test_budget_of_tokens_holds_for_calls_in_flight_together(make_grader, chat_server):
    account = Account(Budget(tokens=400))
    with account.active():
        grades = make_grader().grade(QUERY, NODES * 5)
    assert 0 < chat_server.calls < 5
    assert account.prompt_tokens + account.completion_tokens <= 400
    assert grades.count(None) == 15 - chat_server.calls


async def test_deadline_keeps_what_was_graded(make_grader, chat_server):
    chat_server.reply = lambda question: replace(yes(0.9), delay=30 if "rain" in question.document else 0)
    account = Account(Budget(seconds=2))
    grader = make_grader()
    with account.active():
        both = await asyncio.gather(asyncio.to_thread(grader.grade, QUERY, NODES), grader.agrade(QUERY, NODES))
    assert both == [approx(0.9, None, 0.9)] * 2
    assert account.failures == ["not every answer had come by the deadline of 2 s"]


async def test_calls_still_out_at_the_deadline_are_cancelled(make_grader, chat_server):
    chat_server.reply = lambda question: replace(yes(0.9), delay=30)
    with Account(Budget(seconds=0.3)).active():
        await make_grader().agrade(QUERY, NODES)
    for _ in range(200):
        if not chat_server.open_now:
            break
        await asyncio.sleep(0.02)
    assert chat_server.open_now == 0


def test_fingerprint_tells_teachers_apart(llm, like):
    prints = {
        LLMGrader(llm).fingerprint(),
        LLMGrader(like).fingerprint(),
        LLMGrader(llm, instruction="x").fingerprint(),
        LLMGrader(llm, max_document_tokens=9).fingerprint(),
        LLMGrader(llm, llm_kwargs={"temperature": 1}).fingerprint(),
        LLMGrader(llm, prompt=PromptTemplate("{query} {document}")).fingerprint(),
    }
    assert len(prints) == 6
    assert LLMGrader(llm).fingerprint() == LLMGrader(llm).fingerprint()


def test_the_users_llm_is_not_changed(make_grader, llm):
    make_grader().grade(QUERY, NODES)
    assert llm.max_retries == 3


def test_many_loops_and_threads_share_one_grader(make_grader, chat_server):
    chat_server.reply = lambda question: replace(yes(0.9), delay=0.005)
    grader = make_grader(concurrency=3, retries=3)

    async def several() -> list[list[float | None]]:
        grades = [grader.agrade(QUERY, NODES) for _ in range(5)]
        return [*await asyncio.gather(*grades), await asyncio.to_thread(grader.grade, QUERY, NODES)]

    for _ in range(3):
        for grades in asyncio.run(several()):
            assert grades == approx(0.9, 0.9, 0.9)
    assert chat_server.most_at_once <= 3


def test_query_text_is_the_bundles(make_grader, chat_server):
    make_grader().grade(QueryBundle("what purrs", custom_embedding_strs=["other"]), NODES[:1])
    assert chat_server.questions[0].query == "what purrs"


@pytest.mark.parametrize("kind", [OpenAI, OpenAILike])
def test_a_teacher_that_is_collected_takes_no_connection_of_anothers(chat_server, kind):
    chat = {"is_chat_model": True} if kind is OpenAILike else {}
    teacher = LLMGrader(kind(model="gpt-4o-mini", api_base=chat_server.url, api_key="k", **chat))
    assert teacher.grade(QUERY, NODES) == pytest.approx([0.9, 0.1, 0.9])
    # Only the garbage collector finds it, as is usual for clients.
    vars(teacher)["itself"] = teacher
    del teacher

    async def collect_and_read() -> None:
        gc.collect()
        # These have the lowest numbers that are free: among them those of the connections that are gone.
        pairs = [socket.socketpair() for _ in range(20)]
        heard = [asyncio.Event() for _ in pairs]
        for (one, _), event in zip(pairs, heard, strict=True):
            asyncio.get_running_loop().add_reader(one, event.set)
        for _ in range(20):
            await asyncio.sleep(0)
        for _, other in pairs:
            other.send(b"x")
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in heard)), 10)
        for one, other in pairs:
            asyncio.get_running_loop().remove_reader(one)
            one.close()
            other.close()

    run(collect_and_read())
