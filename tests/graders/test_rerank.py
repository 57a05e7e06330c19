"""RerankGrader, on a server that has one of the two protocols, and on one that keeps to neither."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import ImageNode, QueryBundle, TextNode

from llama_index_refine import RerankGrader
from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.base import GraderError
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.rerank import scores_of
from tests.chat_server import ChatServer, Question, Reply, error, rerank
from tests.graders.conftest import NODES, QUERY, SECRET


def jina(question: Question) -> Reply:
    return Reply(body=rerank(question.body)) if question.path == "/v1/rerank" else Reply(status=404, body=b"")


def text_embeddings_inference(question: Question) -> Reply:
    if question.path != "/rerank":
        return Reply(status=404, body=b"")
    if "texts" in question.body:
        return Reply(body=rerank(question.body))
    reason = b"Failed to deserialize the JSON body into the target type: missing field `texts` at line 1 column 99"
    return Reply(status=422, body=reason, headers={"Content-Type": "text/plain"})


def with_a_page_everywhere(question: Question) -> Reply:
    return jina(question) if question.path == "/v1/rerank" else Reply(body=b"<html>", headers={})


def strict(question: Question) -> Reply:
    if extra := question.body.keys() - {"model", "query", "documents"}:
        return error(400, f"unknown field: parameter '{min(extra)}' is not a valid field")
    return jina(question)


@pytest.fixture
def make(chat_server: ChatServer) -> Callable[..., RerankGrader]:
    def make(**arguments: Any) -> RerankGrader:
        return RerankGrader("m", arguments.pop("base_url", chat_server.url), SECRET, **{"retries": 0, **arguments})

    return make


@pytest.mark.parametrize("served", [jina, text_embeddings_inference, with_a_page_everywhere, strict])
@pytest.mark.parametrize("suffix", ["", "/v1", "/v1/"])
async def test_the_protocol_is_found_out_by_asking(make, chat_server, served, suffix):
    chat_server.reply = served
    grader = make(base_url=chat_server.url.removesuffix("/v1") + suffix, instruction="Questions of cat owners.")
    account = Account()
    with account.active():
        assert grader.grade(QUERY, NODES) == [0.9, 0.1, 0.9]
        assert account.calls == chat_server.calls
        assert await grader.agrade(QUERY, NODES) == [0.9, 0.1, 0.9]
    # What was found out is remembered: one request a wave.
    assert account.calls == chat_server.calls
    known = chat_server.calls
    assert grader.grade(QueryBundle("rain"), NODES) == [0.1, 0.9, 0.1]
    assert chat_server.calls == known + 1
    question = chat_server.questions[-1]
    assert question.headers["Authorization"] == f"Bearer {SECRET}"
    assert question.body["query"] == "rain"
    assert question.body["model"] == "m"
    assert ("instruction" in question.body) == (served is not strict)
    assert account.failures == []


@pytest.mark.parametrize(
    ("results", "scores"),
    [
        ([{"index": 0, "relevance_score": 0.5}, {"index": 1, "score": 0.25}], [0.5, 0.25, None]),
        ([{"index": 3, "score": 1.0}, {"index": -1, "score": 1.0}, {"index": "0", "score": 1}], [None] * 3),
        ([{"index": 0, "score": 0.1}, {"index": 0, "score": 0.9}, {"index": 2, "score": 0}], [None, None, 0.0]),
        ([{"index": 0, "score": math.nan}, {"index": 1, "score": math.inf}, {"index": 2, "score": "1"}], [None] * 3),
        ([{"index": 0, "score": True}, {"index": 1.0, "score": 1}, {"index": 2, "score": 10**400}], [None] * 3),
        ([None, [], "x", 1, {"index": 1}, {"score": 1}, {"index": 2, "score": [1]}], [None] * 3),
    ],
)
def test_what_is_no_score_is_no_grade_and_is_said(make, chat_server, results, scores):
    chat_server.reply = lambda question: Reply(body=json.dumps({"results": results}).encode())
    account = Account()
    with account.active():
        assert make(scale=(0, 1)).grade(QUERY, NODES) == scores
    missing = scores.count(None)
    assert account.failures == [
        f"the reranker gave {missing} of 3 documents no score, two scores, or one that is not a number"
    ]


VALUES = st.sampled_from([0, 1, 2, -1, 0.5, 1e308, 10**400, math.inf, math.nan, True, None, "1", "", [], [1], {}])
RESULTS = st.lists(st.dictionaries(st.sampled_from(["index", "score", "relevance_score"]), VALUES) | VALUES, max_size=8)


@settings(max_examples=50, deadline=None)
@given(RESULTS, st.integers(1, 5))
def test_whatever_a_server_says_there_is_one_finite_score_a_document_or_none(results, count):
    scores = scores_of(results, count)
    assert len(scores) == count
    assert all(score is None or math.isfinite(score) for score in scores)


STRANGE = {
    "no JSON": (Reply(body=b'{"results": [{"ind'), "check the base_url"),
    "other JSON": (Reply(body=b'{"answer": 42}'), "check the base_url"),
    "no results": (Reply(body=b'{"results": []}'), "check the base_url"),
    "deep": (Reply(body=b"[" * 100_000), "check the base_url"),
    "400": (error(400, f"bad {SECRET}"), "refused the request .HTTP 400."),
    "401": (error(401, f"bad {SECRET}"), "api_key"),
    "404": (error(404), "base URL"),
    "429": (error(429, retry_after="0"), "rate limit"),
    "503": (error(503), "HTTP 503"),
    "reset": (Reply(reset=True), "no usable answer"),
    "moved": (Reply(status=307, body=b"", headers={"Location": "/elsewhere"}), "failed"),
    "never": (Reply(body=b"{}", delay=60), "in time"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_server_that_fails_costs_the_grades_and_is_said(make, chat_server, name):
    strange, reason = STRANGE[name]
    chat_server.reply = lambda question: strange
    account = Account()
    with account.active():
        assert make(timeout=0.3 if strange.delay else 30).grade(QUERY, NODES) == [None] * 3
    (failure,) = account.failures
    assert re.search(reason, failure)
    assert SECRET not in failure
    assert account.calls == chat_server.calls <= 3


def test_what_teachers_keep(make, chat_server):
    chat_server.reply = text_embeddings_inference
    with Account(Budget(calls=1)).active() as account:
        assert make().grade(QUERY, NODES) == [None] * 3
    assert account.calls == chat_server.calls == 1
    with Account(Budget(tokens=5)).active() as account:
        assert make().grade(QUERY, NODES) == [None] * 3
    assert "5 tokens" in account.failures[0]
    answers = iter([error(503), error(429, retry_after="0")])
    chat_server.reply = lambda question: next(answers, None) or jina(question)
    with Account(Budget(seconds=30)).active() as account:
        assert make(retries=2).grade(QUERY, NODES) == [0.9, 0.1, 0.9]
    assert account.calls == 3
    chat_server.reply = lambda question: error(500)
    failing = make(cooldown=60)
    for _ in range(5):
        failing.grade(QUERY, NODES)
    calls = chat_server.calls
    with Account().active() as account:
        assert failing.grade(QUERY, NODES) == [None] * 3
    assert chat_server.calls == calls
    assert "not asked for" in account.failures[0]
    chat_server.reply = lambda question: error(401)
    with pytest.raises(GraderError, match="api_key"):
        make(on_error="raise").grade(QUERY, NODES)


def test_usage_is_the_servers_or_counted(make, chat_server):
    body = {"results": [{"index": 0, "relevance_score": 1.0}], "usage": {"total_tokens": 77}}
    chat_server.reply = lambda question: Reply(body=json.dumps(body).encode())
    with Account().active() as account:
        make().grade(QUERY, NODES[:1])
    assert (account.prompt_tokens, account.completion_tokens) == (77, 0)
    chat_server.reply = jina
    with Account().active() as account:
        make().grade(QUERY, NODES[:1])
    assert 5 < account.prompt_tokens < 20


def test_images_are_refused_by_name_and_texts_graded(make, chat_server):
    chat_server.reply = jina
    picture = ImageNode(image="iVBORw0KGgo=", text="cats")
    with Account().active() as account:
        assert make().grade(QUERY, [picture, *NODES, TextNode(text=" ")]) == [None, 0.9, 0.1, 0.9, None]
    assert chat_server.questions[0].body["documents"] == [node.text for node in NODES]
    assert len(account.failures) == 1
    assert "image" in account.failures[0]


def test_one_text_that_is_refused_takes_no_others_grade_with_it(make, chat_server):
    def too_long(question: Question) -> Reply:
        if any("rain" in text for text in question.body["documents"]):
            return error(413, "Input validation error: `inputs` must have less than 512 tokens. Given: 600")
        return jina(question)

    chat_server.reply = too_long
    with Account().active() as account:
        assert make().grade(QUERY, NODES) == [0.9, None, 0.9]
    assert account.calls == chat_server.calls == 4
    assert len(account.failures) == 1
    assert "max_document_tokens" in account.failures[0]


def test_hostile_texts_are_cleaned_and_cut(make, chat_server):
    chat_server.reply = jina
    make(max_document_tokens=5).grade(QUERY, [TextNode(text="<|im_end|>\u202e" + "cats " * 99)])
    (sent,) = chat_server.questions[0].body["documents"]
    assert "<|im_end|>" not in sent
    assert len(sent) < 40


@pytest.mark.parametrize(
    ("scale", "grades"),
    [*((scale, [0.5, 1.0, 0.0]) for scale in (None, (-800, 800), "rank")), (lambda score: 0.5, [0.5] * 3)],
)
def test_scores_become_grades_by_one_scale(make, chat_server, scale, grades):
    given = dict(zip([node.text for node in NODES], [0.0, 800.0, -800.0], strict=True))
    chat_server.reply = lambda question: Reply(body=rerank(question.body, lambda query, text: given[text]))
    assert make(scale=scale).grade(QUERY, NODES) == pytest.approx(grades)


def test_an_order_holds_over_all_rounds_of_a_query_and_no_score_is_no_grade(make, chat_server):
    nodes = [TextNode(id_=str(number), text=str(number)) for number in (5, 1, 4, 2, 3)]

    def all_but_the_fourth(question: Question) -> Reply:
        body = json.loads(rerank(question.body, lambda query, text: float(text)))
        return Reply(body=json.dumps([one for one in body["results"] if one["relevance_score"] != 4]).encode())

    chat_server.reply = all_but_the_fourth
    grader = make(scale="rank")
    with Account().active():
        first, second = grader.grade(QUERY, nodes[:3]), grader.grade(QUERY, nodes[3:])
    assert first == [1.0, 0.0, None]
    assert all(low is not None and low < high for low, high in pairwise([0.0, *second, 1.0]))


def test_what_decides_a_grade_is_in_the_key_and_no_secret(make, chat_server):
    changes: Sequence[dict[str, Any]] = (
        {},
        {"base_url": "http://u:p@127.0.0.1:2/v1"},
        {"instruction": "else"},
        {"prompt": PromptTemplate("Q: {query}{instruction}")},
        {"scale": "logit"},
        {"max_document_tokens": 9},
        {"llm_kwargs": {"truncate_prompt_tokens": -1}},
    )
    prints = [make(**change).fingerprint() for change in changes]
    assert len({*prints, RerankGrader("n", chat_server.url).fingerprint()}) == len(changes) + 1
    assert not any(secret in print_ for print_ in prints for secret in (SECRET, "u:p@"))
    assert RerankGrader("m", chat_server.url, "another key").fingerprint() == prints[0]
    assert SECRET not in repr(make())
    chat_server.reply = jina
    cached = CachedGrader(make())
    assert cached.grade(QUERY, NODES) == cached.grade(QUERY, NODES)
    assert chat_server.calls == 1


@pytest.mark.parametrize("arguments", [("", "http://s"), ("m", "")])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="model and base_url"):
        RerankGrader(*arguments)
    with pytest.raises(ValueError, match="scale must be"):
        RerankGrader("m", "http://s", scale="best")
    with pytest.raises(ValueError, match="prompt must contain"):
        RerankGrader("m", "http://s", prompt=PromptTemplate("x"))
