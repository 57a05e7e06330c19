"""OpenAIGrader on the openai client."""

from __future__ import annotations

import asyncio

import pytest

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import GraderError
from llama_index_refine.graders.openai import OpenAIGrader
from tests.chat_server import Reply, error
from tests.graders.conftest import NODES, QUERY, SECRET


@pytest.fixture
def grader(chat_server):
    return OpenAIGrader("m", chat_server.url, SECRET, retries=0)


async def test_grades_from_coroutines_and_from_synchronous_code(grader, chat_server):
    expected = pytest.approx([0.9, 0.1, 0.9])
    assert await grader.agrade(QUERY, NODES) == expected
    assert grader.grade(QUERY, NODES) == expected
    assert chat_server.questions[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert chat_server.questions[0].body["temperature"] == 0


def test_one_grader_serves_many_event_loops(grader):
    for _ in range(3):
        assert asyncio.run(grader.agrade(QUERY, NODES)) == pytest.approx([0.9, 0.1, 0.9])


def test_a_local_server_needs_no_key(chat_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert OpenAIGrader("m", chat_server.url).grade(QUERY, NODES[:1]) == pytest.approx([0.9])


def test_openai_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(GraderError, match="api_key"):
        OpenAIGrader("m", on_error="raise").grade(QUERY, NODES)
    assert OpenAIGrader("m").grade(QUERY, NODES) == [None, None, None]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="model"):
        OpenAIGrader("")
    with pytest.raises(ValueError, match="timeout"):
        OpenAIGrader("m", timeout=0)


def test_the_key_is_nowhere_to_be_seen(grader, chat_server):
    chat_server.reply = lambda question: error(401, f"Incorrect API key provided: {SECRET}")
    account = Account()
    with account.active():
        grader.grade(QUERY, NODES)
    assert SECRET not in f"{account} {grader!r} {vars(grader)} {grader.fingerprint()}"
    failing = OpenAIGrader("m", chat_server.url, SECRET, on_error="raise")
    with pytest.raises(GraderError) as caught:
        failing.grade(QUERY, NODES)
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__


def test_usage_is_the_servers_or_counted(grader, chat_server):
    account = Account()
    with account.active():
        grader.grade(QUERY, NODES[:1])
    assert account.prompt_tokens == len(chat_server.questions[0].prompt.split())
    chat_server.reply = lambda question: Reply("No", usage=False)
    account = Account()
    with account.active():
        assert grader.grade(QUERY, NODES[:1]) == [0.0]
    assert account.completion_tokens == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": null}]}',
        b"[]",
        b'"Yes"',
        b"null",
    ],
)
def test_what_is_no_chat_completion_is_no_grade(grader, chat_server, body):
    chat_server.reply = lambda question: Reply(body=body)
    account = Account()
    with account.active():
        assert grader.grade(QUERY, NODES) == [None, None, None]
    assert account.failures == ["a call returned no chat completion: check the base_url"]


def test_a_web_page_in_the_place_of_an_answer_is_no_grade(grader, chat_server):
    page = Reply(body=b"<html>Sign in</html>", headers={"Content-Type": "text/html"})
    chat_server.reply = lambda question: page
    account = Account()
    with account.active():
        assert grader.grade(QUERY, NODES) == [None, None, None]
    assert account.failures == ["a call returned no chat completion: check the base_url"]


def test_arguments_of_the_call_go_where_the_openai_client_puts_them(chat_server):
    kwargs = {"extra_body": {"top_k": 1}, "extra_headers": {"X-Team": "search"}, "seed": 7, "timeout": 5}
    OpenAIGrader("m", chat_server.url, SECRET, llm_kwargs=kwargs).grade(QUERY, NODES[:1])
    (question,) = chat_server.questions
    assert question.headers["X-Team"] == "search"
    assert {"top_k": 1, "seed": 7, "logprobs": True, "model": "m"}.items() <= question.body.items()
    assert not {"extra_body", "extra_headers", "timeout"} & set(question.body)


def test_a_shorter_timeout_of_the_call_counts(chat_server):
    chat_server.reply = lambda question: Reply("Yes", delay=30)
    account = Account()
    with account.active():
        grader = OpenAIGrader("m", chat_server.url, SECRET, llm_kwargs={"timeout": 0.05}, retries=0)
        assert grader.grade(QUERY, NODES[:1]) == [None]
    assert "in time" in account.failures[0]


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_key_goes_where_it_was_given_for(chat_server, monkeypatch, by):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-openai")
    if by == "environment":
        monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    OpenAIGrader("m", chat_server.url if by == "argument" else None).grade(QUERY, NODES[:1])
    headers = chat_server.questions[0].headers
    assert headers["Authorization"] == (f"Bearer {SECRET}" if by == "environment" else "Bearer none")
    assert ("OpenAI-Organization" in headers) == (by == "environment")


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.example/v1", False),
        ("https://api.openai.com:k@a.example/v1", False),
        ("https://fakeapi.openai.com.example", False),
    ],
)
def test_openais_key_is_for_openais_addresses(monkeypatch, url, own):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert (OpenAIGrader("m", url)._model.chat._key() == SECRET) == own
