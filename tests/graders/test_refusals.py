"""Teachers on servers that refuse some of what is asked, each as a provider does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader, GraderError
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.listwise import ListwiseGrader
from llama_index_refine.graders.llm import LLMGrader, ScaleGrader
from llama_index_refine.graders.openai import OpenAIGrader
from tests.chat_server import ChatServer, Question, Reply, completion, error, overlap, yes
from tests.graders.asking import bodies
from tests.graders.conftest import NODES, QUERY, SECRET

OPTIONS = ("temperature", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs")
BY_LOGPROBS, BY_TEXT = [0.9, 0.1, 0.9], [1.0, 0.0, 1.0]


@dataclass(frozen=True)
class Habit:
    """How a server behaves: what it answers instead of grading, what it is sent in the end, and the grades."""

    refuses: Callable[[Question], Reply | None]
    sent: dict[str, Any]
    grades: list[float | None]
    calls: int = 3


def refusal(name: str) -> Reply:
    """Answer with a body of the table of real ones."""
    known = bodies.REFUSALS[name]
    return Reply(status=known.status, body=json.dumps(known.body).encode())


def reasoning_model(question: Question) -> Reply | None:
    if "max_tokens" in question.body:
        return refusal("OpenAI: another limit")
    if question.body.get("temperature", 1) != 1:
        return refusal("OpenAI: temperature")
    return refusal("OpenAI: log-probabilities") if question.body.get("logprobs") else None


def at_most(most: int, name: str) -> Callable[[Question], Reply | None]:
    return lambda question: refusal(name) if question.body.get("top_logprobs", 0) > most else None


def without(option: str, name: str) -> Callable[[Question], Reply | None]:
    return lambda question: refusal(name) if option in question.body else None


def not_this_text(name: str) -> Callable[[Question], Reply | None]:
    return lambda question: refusal(name) if "rain" in question.document else None


def thinker(question: Question) -> Reply | None:
    return Reply(None, finish_reason="length") if "max_tokens" in question.body else None


def thinks_apart(question: Question) -> Reply:
    """Put the whole answer into the thoughts, as Ollama does with some models."""
    word = "Yes" if "cats" in question.document else "No"
    body = json.loads(completion(question.body, Reply("")))
    body["choices"][0]["message"]["reasoning"] = f"The question is simple. {word}"
    return Reply(body=json.dumps(body).encode())


def in_parts(question: Question) -> Reply:
    """Answer in parts, as Mistral's reasoning models do."""
    word = "Yes" if "cats" in question.document else "No"
    body = json.loads(completion(question.body, Reply("")))
    thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "Yes or no?"}]}
    body["choices"][0]["message"]["content"] = [thoughts, {"type": "text", "text": word}]
    return Reply(body=json.dumps(body).encode())


ALL = {"temperature": 0.0, "max_tokens": 16, "logprobs": True, "top_logprobs": 20}
NO_LOGPROBS = {"temperature": 0.0, "max_tokens": 16}
NO_LIMIT = {"temperature": 0.0, "logprobs": True, "top_logprobs": 20}
WITHOUT_ONE: list[float | None] = [0.9, None, 0.9]
# By the names of the rows of the table in docs/servers.md.
HABITS = {
    "OpenAI, chat models": Habit(lambda question: None, ALL, BY_LOGPROBS),
    "OpenAI, reasoning models": Habit(reasoning_model, {"max_completion_tokens": 16}, BY_TEXT, 12),
    "Azure OpenAI": Habit(not_this_text("Azure: content filter"), ALL, WITHOUT_ONE),
    "Anthropic": Habit(
        without("temperature", "Anthropic: temperature"),
        {"max_tokens": 16, "logprobs": True, "top_logprobs": 20},
        BY_LOGPROBS,
        6,
    ),
    "Gemini": Habit(without("logprobs", "Gemini: log-probabilities"), NO_LOGPROBS, BY_TEXT, 6),
    "Amazon Bedrock": Habit(
        lambda question: (
            error(400, bodies.BEDROCK["log-probabilities"].body[1]) if "logprobs" in question.body else None
        ),
        NO_LOGPROBS,
        BY_TEXT,
        6,
    ),
    "Mistral": Habit(without("logprobs", "Mistral: log-probabilities"), NO_LOGPROBS, BY_TEXT, 6),
    "Mistral, reasoning models": Habit(in_parts, ALL, BY_TEXT),
    "OpenRouter": Habit(without("logprobs", "OpenRouter: behind it"), NO_LOGPROBS, BY_TEXT, 6),
    "LiteLLM": Habit(without("logprobs", "LiteLLM: parameters"), NO_LOGPROBS, BY_TEXT, 6),
    "vLLM": Habit(at_most(5, "vLLM: fewer, newer"), {**ALL, "top_logprobs": 5}, BY_LOGPROBS, 6),
    "SGLang": Habit(not_this_text("SGLang: too long"), ALL, WITHOUT_ONE),
    "llama.cpp": Habit(not_this_text("llama.cpp: too long"), ALL, WITHOUT_ONE),
    "Ollama": Habit(thinks_apart, ALL, BY_TEXT),
    "TGI": Habit(at_most(5, "TGI: fewer"), {**ALL, "top_logprobs": 5}, BY_LOGPROBS, 6),
    "Together": Habit(at_most(1, "Together: fewer"), {**ALL, "top_logprobs": 1}, BY_TEXT, 9),
    "DashScope": Habit(not_this_text("DashScope: filter"), ALL, WITHOUT_ONE),
    "models that think, on any server": Habit(thinker, NO_LIMIT, BY_LOGPROBS, 6),
    "servers that do not say why": Habit(
        lambda question: error(400, "bad request") if "max_tokens" in question.body else None, NO_LIMIT, BY_LOGPROBS, 9
    ),
}


def behave(server: ChatServer, habit: Habit) -> None:
    server.reply = lambda question: habit.refuses(question) or overlap(question)


def sent(question: Question) -> dict[str, Any]:
    return {name: question.body[name] for name in OPTIONS if name in question.body}


def test_the_documentation_has_a_row_for_each():
    page = (Path(__file__).parents[2] / "docs" / "servers.md").read_text()
    table = page.split("| server or provider |")[1].split("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == [*HABITS, "text completions"]


@pytest.mark.parametrize("name", HABITS)
def test_what_a_model_refuses_is_given_up_and_nothing_else(chat_server, name):
    habit = HABITS[name]
    behave(chat_server, habit)
    grader = OpenAIGrader("m", chat_server.url, SECRET, retries=0, on_error="raise")
    account = Account()
    with account.active():
        assert grader.grade(QUERY, NODES) == pytest.approx(habit.grades)
        assert chat_server.calls == habit.calls
        assert grader.grade(QUERY, NODES) == pytest.approx(habit.grades)
    assert chat_server.calls == habit.calls + 3
    assert all(sent(question) == habit.sent for question in chat_server.questions[-3:])
    assert len(account.failures) == (None in habit.grades)


@pytest.mark.parametrize("name", HABITS)
async def test_it_is_given_up_through_llamaindex_as_well(chat_server, name):
    behave(chat_server, HABITS[name])
    llm = OpenAILike(model="m", api_base=chat_server.url, api_key=SECRET, is_chat_model=True)
    grader = LLMGrader(llm, retries=0, on_error="raise")
    assert await grader.agrade(QUERY, NODES) == pytest.approx(HABITS[name].grades)
    before = chat_server.calls
    assert await grader.agrade(QUERY, NODES) == pytest.approx(HABITS[name].grades)
    assert chat_server.calls == before + 3


async def test_text_completions_are_asked_for_their_own_log_probabilities(chat_server):
    llm = OpenAILike(model="m", api_base=chat_server.url, api_key=SECRET)
    grader = LLMGrader(llm, retries=0, on_error="raise")
    assert grader.grade(QUERY, NODES) == pytest.approx(BY_LOGPROBS, abs=0.03)
    assert await grader.agrade(QUERY, NODES) == pytest.approx(BY_LOGPROBS, abs=0.03)
    assert chat_server.calls == 6
    assert all(question.body["logprobs"] == 5 for question in chat_server.questions)
    assert all("top_logprobs" not in question.body for question in chat_server.questions)


@pytest.mark.parametrize(
    ("message", "number"),
    [
        ("top_logprobs must be at most 5", 5),
        ("Range of top_logprobs should be [0, 8]", 8),
        ("20 logprobs are more than the model can give", 5),
        ("20 is greater than the maximum of 3", 3),
        ("value 20 out of range", 5),
    ],
)
def test_the_number_of_log_probabilities_is_lowered(chat_server, message, number):
    def reply(question: Question) -> Reply:
        return error(400, message) if question.body.get("top_logprobs", 0) > number else overlap(question)

    chat_server.reply = reply
    grades = OpenAIGrader("m", chat_server.url, "k", retries=0).grade(QUERY, NODES)
    assert grades == pytest.approx(BY_LOGPROBS, abs=0.03)
    assert {question.body["top_logprobs"] for question in chat_server.questions} == {20, number}


def test_a_limit_that_is_too_low_is_raised(chat_server):
    chat_server.reply = lambda question: (
        error(400, "Invalid 'max_tokens': integer below minimum value. Expected a value >= 32, but got 16 instead.")
        if question.body["max_tokens"] < 32
        else overlap(question)
    )
    assert OpenAIGrader("m", chat_server.url, "k", retries=0).grade(QUERY, NODES) == pytest.approx(BY_LOGPROBS)
    assert chat_server.questions[-1].body["max_tokens"] == 32


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"max_tokens": 16}, {"logprobs": True, "top_logprobs": 20}])
def test_what_the_user_set_stays_and_the_user_is_told(chat_server, option):
    named = next(iter(option))
    chat_server.reply = lambda question: (
        error(400, f"Unsupported parameter: '{named}'") if named in question.body else overlap(question)
    )
    grader = OpenAIGrader("m", chat_server.url, SECRET, llm_kwargs=option, retries=0, on_error="raise")
    with pytest.raises(GraderError, match=f"`{named}`.*llm_kwargs"):
        grader.grade(QUERY, NODES)
    assert all(option.items() <= question.body.items() for question in chat_server.questions)


def test_each_model_has_its_own_options(chat_server, monkeypatch):
    chat_server.reply = lambda question: (
        (reasoning_model(question) if question.body["model"] == "o9" else None) or overlap(question)
    )
    grader = LLMGrader(retries=0)
    for model, expected in (("o9", BY_TEXT), ("m", BY_LOGPROBS), ("o9", BY_TEXT)):
        llm = OpenAILike(model=model, api_base=chat_server.url, api_key="k", is_chat_model=True)
        monkeypatch.setattr(Settings, "_llm", llm)
        before = chat_server.calls
        assert grader.grade(QUERY, NODES) == pytest.approx(expected)
    assert chat_server.calls == before + 3


def test_a_limit_is_lifted_once_and_then_the_answer_is_missing(chat_server):
    chat_server.reply = lambda question: Reply(None, finish_reason="length")
    account = Account()
    with account.active():
        assert OpenAIGrader("m", chat_server.url, "k").grade(QUERY, NODES[:1]) == [None]
    assert chat_server.calls == 2
    assert "cut short" in account.failures[0]


def test_thinking_that_must_be_turned_off(chat_server):
    chat_server.reply = lambda question: (
        overlap(question) if question.body.get("enable_thinking") is False else refusal("DashScope: thinking")
    )
    with pytest.raises(GraderError, match="enable_thinking"):
        OpenAIGrader("qwen3-8b", chat_server.url, "k", on_error="raise").grade(QUERY, NODES)
    off = {"extra_body": {"enable_thinking": False}}
    grader = OpenAIGrader("qwen3-8b", chat_server.url, "k", llm_kwargs=off, on_error="raise")
    assert grader.grade(QUERY, NODES) == pytest.approx(BY_LOGPROBS)


def test_a_listwise_teacher_gives_up_llamaindex_temperature(chat_server, like):
    def reply(question: Question) -> Reply:
        if question.body.get("temperature", 1) != 1:
            return refusal("OpenAI: temperature")
        return Reply(
            '[{"document": 1, "relevance": 10}, {"document": 2, "relevance": 0}, {"document": 3, "relevance": 5}]'
        )

    chat_server.reply = reply
    grader = ListwiseGrader(like, retries=0, on_error="raise")
    assert grader.grade(QUERY, NODES) == [1.0, 0.0, 0.5]
    assert grader.grade(QUERY, NODES) == [1.0, 0.0, 0.5]
    assert chat_server.calls == 3


STOPPING = [name for name, refusal in bodies.REFUSALS.items() if refusal.remedy is bodies.STOP]
OF_ONE_TEXT = [name for name, refusal in bodies.REFUSALS.items() if refusal.remedy is bodies.SKIP]


@pytest.mark.parametrize("name", STOPPING)
def test_what_the_user_has_to_change_raises(chat_server, name):
    chat_server.reply = lambda question: refusal(name)
    grader = OpenAIGrader("m", chat_server.url, SECRET, retries=2, on_error="raise")
    with pytest.raises(GraderError, match=bodies.REFUSALS[name].word):
        grader.grade(QUERY, NODES)
    assert chat_server.calls <= 3
    chat_server.reply = lambda question: refusal(name)
    for _ in range(3):
        with pytest.raises(GraderError, match=bodies.REFUSALS[name].word):
            grader.grade(QUERY, NODES)


@pytest.mark.parametrize("name", OF_ONE_TEXT)
def test_one_text_never_raises_and_costs_only_its_own_grade(chat_server, name):
    chat_server.reply = lambda question: refusal(name) if "rain" in question.document else overlap(question)
    account = Account()
    grader = OpenAIGrader("m", chat_server.url, SECRET, retries=2, on_error="raise")
    with account.active():
        assert grader.grade(QUERY, NODES) == [pytest.approx(0.9), None, pytest.approx(0.9)]
        assert grader.grade(QUERY, [NODES[1]] * 10) == [None] * 10
        assert grader.grade(QUERY, NODES) == [pytest.approx(0.9), None, pytest.approx(0.9)]
    assert len(account.failures) == 1
    assert bodies.REFUSALS[name].word in account.failures[0]


def test_a_refusal_without_a_reason_is_one_texts_where_others_are_answered(chat_server):
    chat_server.reply = lambda question: error(400, "no") if "rain" in question.document else overlap(question)
    grader = OpenAIGrader("m", chat_server.url, SECRET, retries=0, on_error="raise")
    assert grader.grade(QUERY, NODES) == [pytest.approx(0.9), None, pytest.approx(0.9)]
    chat_server.reply = lambda question: error(400, "no")
    with pytest.raises(GraderError, match="HTTP 400"):
        OpenAIGrader("m", chat_server.url, SECRET, retries=0, on_error="raise").grade(QUERY, NODES)


def test_an_error_in_the_place_of_an_answer_is_waited_out(chat_server):
    limited = json.dumps(bodies.openrouter(429, "Provider returned error")).encode()
    chat_server.reply = lambda question: Reply(body=limited) if chat_server.calls == 1 else yes(0.9)
    assert OpenAIGrader("m", chat_server.url, "k", retries=1).grade(QUERY, NODES[:1]) == pytest.approx([0.9])
    chat_server.reply = lambda question: Reply(body=json.dumps(bodies.openrouter(402, "no")).encode())
    with pytest.raises(GraderError, match="credit"):
        OpenAIGrader("m", chat_server.url, "k", on_error="raise").grade(QUERY, NODES)


def test_what_google_asks_to_wait_is_waited(chat_server):
    body = json.dumps(bodies.google(429, "RESOURCE_EXHAUSTED", bodies.NO_QUOTA, bodies.retry_info("0.01s"))).encode()
    chat_server.reply = lambda question: Reply(status=429, body=body) if chat_server.calls == 1 else yes(0.9)
    assert OpenAIGrader("m", chat_server.url, "k", retries=1).grade(QUERY, NODES[:1]) == pytest.approx([0.9])


def refusing_tokenizer(text: str) -> list[int]:
    raise ValueError("disallowed special token")


@pytest.fixture(params=["OpenAIGrader", "LLMGrader", "ScaleGrader", "ListwiseGrader"])
def teacher(request: pytest.FixtureRequest, chat_server: ChatServer, like: OpenAILike) -> BaseGrader:
    if request.param == "OpenAIGrader":
        return OpenAIGrader("m", chat_server.url, SECRET, retries=0)
    kinds = {"LLMGrader": LLMGrader, "ScaleGrader": ScaleGrader, "ListwiseGrader": ListwiseGrader}
    return kinds[request.param](like, retries=0)


def any_answer(question: Question) -> Reply:
    """Answer whichever teacher asks."""
    if len(question.documents) > 1 or "JSON" in question.prompt:
        return Reply(json.dumps([{"document": n + 1, "relevance": 10} for n in range(len(question.documents))]))
    return Reply("3" if "one number" in question.prompt else "Yes")


@pytest.mark.parametrize("odd", ["cats \ud83d", "\ude00", "a\x00b\x1b", "<|endoftext|> <|im_end|>", "\ufffe", "[INST]"])
def test_odd_characters_are_cleaned_in_queries_and_documents(chat_server, teacher, odd):
    chat_server.reply = any_answer
    account = Account()
    with account.active():
        assert teacher.grade(QueryBundle(f"{odd} purr"), NODES) == [1.0] * 3
        assert teacher.grade(QUERY, [TextNode(text=f"{odd} purr"), *NODES]) == [1.0] * 4
    assert account.failures == []
    for question in chat_server.questions:
        assert not {"\x00", "\x1b", "\ufffe"} & set(question.prompt)
        assert not any(mark in question.prompt for mark in ("<|im_end|>", "<|endoftext|>", "[INST]"))


def test_halves_of_a_character_that_belong_together_are_joined(chat_server):
    OpenAIGrader("m", chat_server.url, "k").grade(QueryBundle("cat \ud83d\ude3a \ud83d"), NODES[:1])
    assert chat_server.questions[0].query == "cat \U0001f63a \ufffd"


def test_a_tokenizer_that_fails_costs_no_grade(chat_server, teacher, monkeypatch):
    monkeypatch.setattr(Settings, "_tokenizer", refusing_tokenizer)
    monkeypatch.setattr("llama_index.core.global_tokenizer", refusing_tokenizer)
    chat_server.reply = any_answer
    long = TextNode(text="cats and dogs " * 1000)
    assert teacher.grade(QUERY, [long, *NODES]) == [1.0] * 4
    assert len(chat_server.questions[0].documents[0]) < 2000


def test_errors_that_are_not_the_servers_do_not_open_the_circuit(chat_server):
    bad = Reply(body=b'{"choices": [{"message": {"content": "Ye')
    chat_server.reply = lambda question: bad if "rain" in question.document else overlap(question)
    grader = OpenAIGrader("m", chat_server.url, "k", retries=0, concurrency=1)
    assert grader.grade(QUERY, [NODES[1]] * 12) == [None] * 12
    assert grader.grade(QUERY, NODES) == [pytest.approx(0.9), None, pytest.approx(0.9)]


def test_an_llm_that_fails_by_itself_does_not_open_the_circuit(chat_server, like):
    class Moody(OpenAILike):
        async def achat(self, messages: Any, **kwargs: Any) -> Any:
            if "rain" in messages[0].content:
                raise KeyError("insufficient_quota")
            return await super().achat(messages, **kwargs)

        def chat(self, messages: Any, **kwargs: Any) -> Any:
            if "rain" in messages[0].content:
                raise KeyError("insufficient_quota")
            return super().chat(messages, **kwargs)

    llm = Moody(model="m", api_base=chat_server.url, api_key="k", is_chat_model=True)
    grader = LLMGrader(llm, retries=0, concurrency=1, on_error="raise")
    assert grader.grade(QUERY, NODES) == [pytest.approx(0.9), None, pytest.approx(0.9)]
    assert grader.grade(QUERY, [NODES[1]] * 12) == [None] * 12
    assert grader.grade(QUERY, NODES) == [pytest.approx(0.9), None, pytest.approx(0.9)]


def test_a_model_that_llamaindex_does_not_know(chat_server):
    llm = OpenAI(model="qwen3-8b", api_base=chat_server.url, api_key="k")
    for grader in (LLMGrader(llm), CachedGrader(LLMGrader(llm)), ListwiseGrader(llm), ScaleGrader(llm)):
        account = Account()
        with account.active():
            assert grader.grade(QUERY, NODES) == [None] * 3
        assert "'qwen3-8b'" in account.failures[0]
        assert "OpenAILike" in account.failures[0]
    with pytest.raises(GraderError, match="OpenAILike"):
        LLMGrader(llm, on_error="raise").grade(QUERY, NODES)
