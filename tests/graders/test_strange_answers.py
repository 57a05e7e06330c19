"""Every way a chat model or its server can fail to answer, through each real client."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from llama_index.core.schema import QueryBundle
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import BaseGrader, GraderError
from llama_index_refine.graders.listwise import ListwiseGrader
from llama_index_refine.graders.llm import LLMGrader, ScaleGrader
from llama_index_refine.graders.openai import OpenAIGrader
from tests.chat_server import ChatServer, Question, Reply, error, overlap, yes
from tests.graders.conftest import NODES, QUERY, SECRET

MakeTeacher = Callable[..., BaseGrader]

CHATTY = "That is an interesting question! Relevance can mean many things to many people."
REFUSAL = "I'm sorry, but I can't help with that request."

# What the model or server does, and a word of the reason given.
STRANGE = {
    "empty": (Reply(""), "empty"),
    "null": (Reply(None), "empty"),
    "chatty": (Reply(CHATTY), "something else"),
    "refusing": (Reply(REFUSAL), "refusal"),
    "refusing with log-probabilities": (Reply(REFUSAL, [{"I": 0.7, "Yes": 0.2, "No": 0.1}, {"'m": 1.0}]), "refusal"),
    "another script": (Reply("関係については何とも言えません"), "something else"),
    "malformed JSON": (Reply(body=b'{"id": "c1", "choices": [{"mess'), "no usable answer"),
    "not JSON": (Reply(body=b"<html>hello</html>", headers={"Content-Type": "text/html"}), "failed|base_url"),
    "no choices": (Reply(body=b'{"id": "c", "object": "chat.completion", "choices": []}'), "failed|empty"),
    "null choices": (Reply(body=b'{"id": "c", "object": "chat.completion", "choices": null}'), "failed|base_url"),
    "NaN": (Reply("NaN"), "something else"),
    "NaN log-probabilities": (Reply(body=b"NaN"), "failed|base_url"),
    "thousands of tokens": (Reply("blah " * 20_000), "something else"),
    "cut short": (Reply("Let me think", finish_reason="length"), "cut short"),
    "content filter": (Reply(None, finish_reason="content_filter"), "content filter"),
    "content filter as an error": (error(400, "blocked", "content_filter"), "content filter"),
    "400": (error(400), "HTTP 400"),
    "401": (error(401, f"Incorrect API key provided: {SECRET}"), "api_key"),
    "403": (error(403), "api_key"),
    "404": (error(404), "model"),
    "408": (error(408), "in time"),
    "422": (error(422), "HTTP 422"),
    "429": (error(429, retry_after="0"), "rate limit"),
    "500": (error(500), "HTTP 500"),
    "503": (error(503), "HTTP 503"),
    "reset": (Reply(reset=True), "no usable answer"),
    "a byte a second": (replace(yes(0.9), trickle=1.0), "in time"),
}


@pytest.fixture(params=["OpenAI", "OpenAILike", "openai"])
def make_teacher(request: pytest.FixtureRequest, chat_server: ChatServer) -> MakeTeacher:
    def make(**arguments: object) -> BaseGrader:
        if request.param == "openai":
            return OpenAIGrader("m", chat_server.url, SECRET, **arguments)  # type: ignore[arg-type]
        kind = {"OpenAI": OpenAI, "OpenAILike": OpenAILike}[request.param]
        chat = {"is_chat_model": True} if kind is OpenAILike else {}
        llm = kind(model="gpt-4o-mini", api_base=chat_server.url, api_key=SECRET, **chat)
        return LLMGrader(llm, **arguments)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("name", STRANGE)
async def test_a_strange_answer_costs_only_its_own_grade(make_teacher, chat_server, name):
    strange, reason = STRANGE[name]
    chat_server.reply = lambda question: strange if "rain" in question.document else yes(0.9)
    teacher = make_teacher(retries=0, timeout=2.0 if strange.trickle else 60.0)
    account = Account()
    with account.active():
        both = await asyncio.gather(asyncio.to_thread(teacher.grade, QUERY, NODES), teacher.agrade(QUERY, NODES))
    for grades in both:
        assert grades == pytest.approx([0.9, None, 0.9])
    assert account.failures
    assert all(re.search(reason, failure) and SECRET not in failure for failure in account.failures)


@pytest.mark.parametrize("name", STRANGE)
def test_nothing_but_strange_answers_is_one_line_in_the_log(make_teacher, chat_server, caplog, name):
    strange, reason = STRANGE[name]
    chat_server.reply = lambda question: strange
    teacher = make_teacher(retries=0, timeout=0.5 if strange.trickle else 60.0)
    assert teacher.grade(QUERY, NODES) == [None, None, None]
    lines = [record.message for record in caplog.records if record.name.startswith("llama_index_refine")]
    assert len(lines) == 1
    assert re.search(reason, lines[0])


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Yes", 1.0),
        ("no", 0.0),
        ("**No.** The document is about the weather.", 0.0),
        ("Yes, because it speaks of cats", 1.0),
        ('{"answer": "yes"}', 1.0),
        ("```\nNo\n```", 0.0),
        ("Answer: Yes", 1.0),
        ("The answer is no.", 0.0),
        ("The document is not relevant to the query.", None),
        ("This document is highly relevant.", None),
        ("It isn't relevant", None),
        ("Not relevant", 0.0),
        ("Irrelevant.", 0.0),
        ("After some thought I would say: no", None),
        ("<think>Yes? No?</think>Yes", 1.0),
        ("Oui, le document parle de chats.", 1.0),
        ("Nein, es geht um Regen.", 0.0),
        ("Sí.", 1.0),
        ("Não", 0.0),
        ("Да, конечно", 1.0),
        ("いいえ、違います。", 0.0),
        ("是的、相关。", 1.0),
        ("不相关", 0.0),
        ("아니요.", 0.0),
        ("नहीं", 0.0),
        ("لا", 0.0),
        ("Yes or No", None),
        ("I cannot say whether it is yes or no", None),
        ("Is this document relevant to the query? Answer with one word: Yes or No.", None),
        ("As an AI I have no", None),
        ("Maybe", None),
        ("No. " + "Because of this and that. " * 10_000, 0.0),
        ("Let me see. " * 10_000 + "The answer is yes.", 1.0),
    ],
)
def test_answers_in_words(make_grader, chat_server, text, grade):
    chat_server.reply = lambda question: Reply(text)
    assert make_grader().grade(QUERY, NODES[:1]) == [grade]


@pytest.mark.parametrize(
    ("tokens", "text", "grade"),
    [
        ([{"Yes": 0.6, " yes": 0.1, "▁Yes": 0.05, "YES": 0.05, "No": 0.15, "Ġno": 0.05}], "Yes", 0.8),
        ([{"\n": 0.9, "Yes": 0.1}, {"No": 0.75, "Yes": 0.25}], "\nNo", 0.25),
        ([{"**": 1.0}, {"Yes.": 0.5, "No.": 0.5}], "**Yes.**", 0.5),
        ([{"Yes": 1.0}], "Yes", 1.0),
        ([{"No": 1.0, "Yes": 0.0}], "No", 0.0),
        (
            [{"The": 0.9, "Yes": 0.1}, {" answer": 1.0}, {" is": 1.0}, {" no": 0.7, " yes": 0.3}],
            "The answer is no",
            0.3,
        ),
        ([{"Well": 0.5, "Yes": 0.3, "No": 0.1}], "Well", 0.75),
        ([{"Well": 0.95, "Yes": 0.03}], "Well", None),
        ([{"Oui": 0.8, "Non": 0.2}], "Oui", 0.8),
        ([], "Yes", 1.0),
    ],
)
def test_answers_in_log_probabilities(make_grader, chat_server, tokens, text, grade):
    chat_server.reply = lambda question: Reply(text, tokens)
    assert make_grader().grade(QUERY, NODES[:1]) == [pytest.approx(grade) if grade is not None else None]


@pytest.mark.parametrize("logprob", ["NaN", "null", "1e9", '"x"'])
def test_log_probabilities_that_are_no_numbers(make_teacher, chat_server, logprob):
    entry = f'{{"token": "Yes", "logprob": {logprob}, "bytes": null'
    body = (
        '{"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, '
        '"finish_reason": "stop", "message": {"role": "assistant", "content": "Yes"}, '
        f'"logprobs": {{"content": [{entry}, "top_logprobs": [{entry}}}]}}]}}}}]}}'
    )
    plain = Reply("Yes")
    chat_server.reply = lambda question: Reply(body=body.encode()) if question.body.get("logprobs") else plain
    assert make_teacher(retries=0).grade(QUERY, NODES[:1]) == [1.0]


@pytest.mark.parametrize(("status", "advice"), [(400, "llm_kwargs"), (401, "api_key"), (403, "key"), (404, "model")])
async def test_wrong_settings_raise_when_asked_to(make_teacher, chat_server, status, advice):
    chat_server.reply = lambda question: error(status, f"this is wrong: {SECRET}")
    teacher = make_teacher(on_error="raise", retries=5)
    with pytest.raises(GraderError, match=advice) as caught:
        await teacher.agrade(QUERY, NODES)
    assert SECRET not in str(caught.value)
    with pytest.raises(GraderError, match=f"HTTP {status}"):
        teacher.grade(QUERY, NODES)


@pytest.mark.parametrize("name", ["500", "429", "reset", "content filter as an error", "empty", "malformed JSON"])
def test_passing_failures_do_not_raise_even_then(make_teacher, chat_server, name):
    chat_server.reply = lambda question: STRANGE[name][0]
    assert make_teacher(on_error="raise", retries=0).grade(QUERY, NODES) == [None, None, None]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_passing_failures_are_tried_again(make_teacher, chat_server, status):
    asked: dict[str, int] = {}

    def reply(question: Question) -> Reply:
        asked[question.document] = asked.get(question.document, 0) + 1
        return yes(0.9) if asked[question.document] == 3 else error(status, retry_after="0")

    chat_server.reply = reply
    account = Account()
    with account.active():
        assert await make_teacher(retries=2).agrade(QUERY, NODES) == pytest.approx([0.9] * 3)
    assert chat_server.calls == account.calls == 9
    assert account.failures == []


def test_a_reset_connection_is_tried_again(make_teacher, chat_server):
    chat_server.reply = lambda question: Reply(reset=True) if chat_server.calls == 1 else yes(0.9)
    assert make_teacher(retries=1).grade(QUERY, NODES[:1]) == pytest.approx([0.9])


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_bad_requests_are_not_tried_again(make_teacher, chat_server, status):
    chat_server.reply = lambda question: yes(0.9)
    teacher = make_teacher(retries=5)
    teacher.grade(QUERY, NODES[:1])
    chat_server.reply = lambda question: error(status)
    assert teacher.grade(QUERY, NODES[:1]) == [None]
    assert chat_server.calls == 2


def test_retry_after_is_respected(make_teacher, chat_server):
    times: list[float] = []

    def reply(question: Question) -> Reply:
        times.append(time.monotonic())
        return error(429, retry_after="0.4") if len(times) == 1 else yes(0.9)

    chat_server.reply = reply
    assert make_teacher(retries=1).grade(QUERY, NODES[:1]) == pytest.approx([0.9])
    assert times[1] - times[0] >= 0.4


def test_a_retry_after_of_an_hour_is_not_waited_for(make_teacher, chat_server):
    chat_server.reply = lambda question: error(429, retry_after="3600")
    assert make_teacher(retries=5).grade(QUERY, NODES[:1]) == [None]
    assert chat_server.calls == 1


def test_the_circuit_opens_and_closes(make_teacher, chat_server):
    chat_server.reply = lambda question: error(500)
    teacher = make_teacher(retries=0, concurrency=1, cooldown=0.3)
    teacher.grade(QUERY, NODES * 3)
    assert chat_server.calls == 5
    account = Account()
    with account.active():
        assert teacher.grade(QUERY, NODES) == [None] * 3
    assert chat_server.calls == 5
    assert "not asked for" in account.failures[0]
    chat_server.reply = overlap
    time.sleep(0.35)
    assert teacher.grade(QUERY, NODES) == pytest.approx([0.9, 0.1, 0.9])


def test_the_circuit_lets_one_trial_through(make_teacher, chat_server):
    chat_server.reply = lambda question: error(500)
    teacher = make_teacher(retries=0, concurrency=1, cooldown=0.3)
    teacher.grade(QUERY, NODES * 3)
    time.sleep(0.35)
    teacher.grade(QUERY, NODES * 3)
    assert chat_server.calls == 6


async def test_a_server_that_hangs_opens_the_circuit_through_deadlines(make_teacher, chat_server):
    chat_server.reply = lambda question: Reply("Yes", delay=60)
    teacher = make_teacher()
    for _ in range(5):
        with Account(Budget(seconds=0.05)).active():
            assert await teacher.agrade(QUERY, NODES) == [None] * 3
    # The server may come to hear only now of questions that were given up, so the next query is told from them.
    another, account = QueryBundle("are dogs loud"), Account()
    with account.active():
        assert await teacher.agrade(another, NODES) == [None] * 3
    assert "not asked for" in account.failures[0]
    assert not any(another.query_str in question.prompt for question in chat_server.questions)


async def test_cancelling_a_query_cancels_its_calls(chat_server):
    chat_server.reply = lambda question: Reply("Yes", delay=60)
    grading = asyncio.create_task(OpenAIGrader("m", chat_server.url, "k").agrade(QUERY, NODES))
    while chat_server.open_now < 3:
        await asyncio.sleep(0.01)
    grading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await grading
    while chat_server.open_now:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["empty", "refusing", "chatty", "malformed JSON", "500", "content filter"])
async def test_other_teachers_survive_as_well(llm, chat_server, name):
    chat_server.reply = lambda question: STRANGE[name][0]
    for teacher in (ScaleGrader(llm, retries=0), ListwiseGrader(llm, retries=0)):
        assert await teacher.agrade(QUERY, NODES) == [None] * 3
        assert teacher.grade(QUERY, NODES) == [None] * 3


@pytest.mark.parametrize("teacher", ["OpenAIGrader('m', url, 'k')", "LLMGrader(OpenAI(api_base=url, api_key='k'))"])
def test_calls_still_out_do_not_keep_the_interpreter_alive(chat_server, teacher):
    chat_server.reply = lambda question: Reply("Yes", delay=600)
    script = textwrap.dedent(
        f"""
        from llama_index.core.schema import QueryBundle, TextNode
        from llama_index.llms.openai import OpenAI
        from llama_index_refine.graders.account import Account, Budget
        from llama_index_refine.graders.llm import LLMGrader
        from llama_index_refine.graders.openai import OpenAIGrader
        url = {chat_server.url!r}
        with Account(Budget(seconds=0.5)).active():
            print({teacher}.grade(QueryBundle("q"), [TextNode(text="d")]))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[None]\n"


def test_many_queries_share_one_limit_and_all_return(chat_server):
    numbers = itertools.count(1)
    chat_server.reply = lambda question: error(503) if next(numbers) % 5 == 0 else yes(0.9)
    teacher = OpenAIGrader("m", chat_server.url, "k", concurrency=8, retries=0)

    async def all_queries() -> list[list[float | None]]:
        return await asyncio.gather(*(teacher.agrade(QUERY, NODES[:1]) for _ in range(300)))

    grades = asyncio.run(all_queries())
    assert chat_server.calls == 300
    assert chat_server.most_at_once <= 8
    assert sum(grade == [None] for grade in grades) == 60
    assert threading.active_count() < 30


def test_a_server_with_one_place_answers_every_question(make_teacher, chat_server):
    free = 0.0

    def one_at_a_time(question: Question) -> Reply:
        nonlocal free
        now = time.monotonic()
        free = max(now, free) + 0.1
        return replace(yes(0.9), delay=free - now)

    chat_server.reply = one_at_a_time
    account = Account()
    with account.active():
        grades = make_teacher(retries=0, timeout=1.2, cooldown=60).grade(QUERY, NODES * 10)
    assert grades == pytest.approx([0.9] * 30)
    assert account.failures == []


DENIALS = [
    "None of this is relevant to the query.",
    "Nothing in the document is relevant.",
    "It is false that the document is relevant.",
    "I fail to see how this document is relevant to the query.",
    "Little of this is relevant.",
    "The document is anything but relevant.",
    "Hardly relevant.",
    "Relevant? Not in the slightest.",
    "The document lacks anything that is relevant.",
]


@pytest.mark.parametrize("text", DENIALS)
def test_a_denial_in_whatever_words_is_never_a_yes(make_grader, chat_server, text):
    chat_server.reply = lambda question: Reply(text)
    assert make_grader().grade(QUERY, NODES[:1])[0] in (None, 0.0)


@pytest.mark.parametrize("text", [*DENIALS, CHATTY, "This document is highly relevant."])
def test_what_cannot_be_read_is_asked_once_more_in_a_form(make_teacher, chat_server, text):
    def reply(question: Question) -> Reply:
        if "response_format" not in question.body:
            return Reply(text)
        return Reply(
            '{"answer": "No"}', [{'{"': 1.0}, {"answer": 1.0}, {'":': 1.0}, {' "': 1.0}, {"No": 0.8, "Yes": 0.2}]
        )

    chat_server.reply = reply
    account = Account()
    with account.active():
        teacher = make_teacher(retries=0)
        assert teacher.grade(QUERY, NODES[:1]) == [pytest.approx(0.2)]
        assert account.calls == chat_server.calls == 2
        assert teacher.grade(QUERY, NODES) == pytest.approx([0.2] * 3)
    assert chat_server.calls == 5
    form = chat_server.questions[-1].body["response_format"]["json_schema"]["schema"]
    assert form["properties"]["answer"]["enum"] == ["Yes", "No"]


def test_a_server_that_refuses_the_form_is_not_asked_for_it_again(make_teacher, chat_server):
    chat_server.reply = lambda question: error(400) if "response_format" in question.body else Reply(CHATTY)
    teacher, account = make_teacher(retries=0, on_error="raise"), Account()
    with account.active():
        assert teacher.grade(QUERY, NODES[:1]) == [None]
        assert teacher.grade(QUERY, NODES[:1]) == [None]
    assert chat_server.calls == 3
    assert account.failures == ["an answer was not one of those asked for (a refusal, or something else)"]


def test_a_server_that_answers_nothing_costs_one_timeout_and_then_nothing(make_teacher, chat_server):
    chat_server.reply = lambda question: Reply("Yes", delay=600)
    teacher, account = make_teacher(timeout=1.0, cooldown=600), Account()
    with account.active():
        assert teacher.grade(QUERY, NODES * 7) == [None] * 21
        calls = account.calls
        assert teacher.grade(QUERY, NODES) == [None] * 3
    assert calls == account.calls <= 4
    assert any("in time" in failure for failure in account.failures)
    assert any("not asked for" in failure for failure in account.failures)


def test_a_server_that_falls_silent_costs_one_timeout(make_teacher, chat_server):
    chat_server.reply = lambda question: yes(0.9) if chat_server.calls <= 4 else Reply("Yes", delay=600)
    teacher, account = make_teacher(timeout=1.0, cooldown=600), Account()
    with account.active():
        grades = teacher.grade(QUERY, NODES * 7)
    assert [grade for grade in grades if grade is not None] == pytest.approx([0.9] * 4)
    assert account.calls <= 12


def test_one_text_that_takes_for_ever_costs_only_its_own_grade(make_teacher, chat_server):
    chat_server.reply = lambda question: replace(yes(0.9), delay=600 if "rain" in question.document else 0)
    teacher = make_teacher(timeout=1.0, concurrency=1, cooldown=600)
    assert teacher.grade(QUERY, NODES) == [pytest.approx(0.9), None, pytest.approx(0.9)]
    assert teacher.grade(QUERY, NODES[:1]) == pytest.approx([0.9])
