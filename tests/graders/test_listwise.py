"""ListwiseGrader: structured output, plain text, and what models make of them."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.llms.openai import OpenAI

from llama_index_refine.graders.account import Account, Budget
from llama_index_refine.graders.listwise import ListwiseGrader
from tests.chat_server import Question, Reply, error
from tests.graders.conftest import NODES, QUERY


def verdicts(question: Question, relevance: Any = lambda text: 9 if "cat" in text else 1) -> Reply:
    entries = [{"document": n, "relevance": relevance(text)} for n, text in enumerate(question.documents, start=1)]
    return Reply(arguments={"verdicts": entries})


@pytest.mark.parametrize("model", ["gpt-4-turbo", "gpt-4o-mini"])
async def test_structured_output(chat_server, model):
    chat_server.reply = verdicts
    grader = ListwiseGrader(OpenAI(model=model, api_base=chat_server.url, api_key="k"))
    assert grader.grade(QUERY, NODES) == [0.9, 0.1, 0.9]
    assert await grader.agrade(QUERY, NODES) == [0.9, 0.1, 0.9]
    assert chat_server.calls == 2
    assert chat_server.questions[0].body["response_format"]["json_schema"]["name"] == "Verdicts"
    assert grader.grade(QUERY, []) == []


async def test_plain_text_for_llms_without_function_calling(like, chat_server):
    chat_server.reply = lambda question: Reply('[{"document": 1, "relevance": 10}, {"document": 3, "relevance": 5}]')
    grader = ListwiseGrader(like)
    assert await grader.agrade(QUERY, NODES) == [1.0, None, 0.5]
    assert grader.grade(QUERY, NODES) == [1.0, None, 0.5]
    assert "one entry for each of the 3 documents" in chat_server.questions[0].prompt
    assert chat_server.calls == 2


@pytest.mark.parametrize("failure", [error(400, "tools are not supported"), Reply("I think 1: 7"), Reply(arguments={})])
def test_falls_back_to_plain_text_and_remembers(llm, chat_server, failure):
    def reply(question: Question) -> Reply:
        structured = "tools" in question.body or "response_format" in question.body
        return failure if structured else Reply('{"1": 7, "2": 0, "3": 10}')

    chat_server.reply = reply
    grader = ListwiseGrader(llm, retries=0)
    assert grader.grade(QUERY, NODES) == [0.7, 0.0, 1.0]
    assert chat_server.calls == 2
    assert grader.grade(QUERY, NODES) == [0.7, 0.0, 1.0]
    assert chat_server.calls == 3


def test_one_bad_structured_answer_does_not_end_structured_output(llm, chat_server):
    chat_server.reply = verdicts
    grader = ListwiseGrader(llm, retries=0)
    grader.grade(QUERY, NODES)
    chat_server.reply = lambda question: Reply("Sorry.")
    assert grader.grade(QUERY, NODES) == [None, None, None]
    chat_server.reply = verdicts
    assert grader.grade(QUERY, NODES) == [0.9, 0.1, 0.9]


def test_batches_by_count_and_by_tokens(llm, chat_server):
    chat_server.reply = verdicts
    nodes = [TextNode(text=f"cat {place} " + "word " * 90) for place in range(10)]
    assert ListwiseGrader(llm, batch_size=4).grade(QUERY, nodes) == [0.9] * 10
    assert sorted(len(question.documents) for question in chat_server.questions) == [2, 4, 4]
    ListwiseGrader(llm, max_prompt_tokens=400, max_document_tokens=200).grade(QUERY, nodes)
    assert sorted(len(question.documents) for question in chat_server.questions[3:]) == [1, 3, 3, 3]


async def test_both_orders_average_out_the_favour_of_the_first(llm, chat_server):
    def favour(question: Question) -> Reply:
        entries = [{"document": n, "relevance": 10 if n == 1 else 4} for n in range(1, len(question.documents) + 1)]
        return Reply(arguments={"verdicts": entries})

    chat_server.reply = favour
    grades = await ListwiseGrader(llm, both_orders=True).agrade(QUERY, NODES)
    assert grades == pytest.approx([0.7, 0.4, 0.7])
    assert grades.spread == pytest.approx([0.3, 0.0, 0.3])
    assert chat_server.calls == 2


def test_empty_nodes_are_left_out(llm, chat_server):
    chat_server.reply = verdicts
    assert ListwiseGrader(llm).grade(QUERY, [TextNode(text=" "), *NODES]) == [None, 0.9, 0.1, 0.9]


def test_charges_the_account_and_keeps_its_budget(llm, chat_server):
    chat_server.reply = verdicts
    account = Account(Budget(tokens=1000))
    with account.active():
        ListwiseGrader(llm).grade(QUERY, NODES)
    assert account.calls == 1
    assert account.prompt_tokens > 100
    assert account.completion_tokens > 10
    account = Account(Budget(tokens=100))
    with account.active():
        assert ListwiseGrader(llm).grade(QUERY, NODES) == [None] * 3
    assert chat_server.calls == 1


def test_prompt_instruction_and_fingerprint(llm, chat_server):
    chat_server.reply = verdicts
    grader = ListwiseGrader(llm, instruction="Queries are claims.")
    before = grader.fingerprint()
    grader.update_prompts({"grade_prompt": PromptTemplate("{instruction} {query} {documents}")})
    assert grader.fingerprint() != before
    grader.grade(QUERY, NODES)
    assert chat_server.questions[0].prompt.startswith("\nThe task: Queries are claims. how do")
    with pytest.raises(ValueError, match=r"\{documents\}"):
        grader.update_prompts({"grade_prompt": PromptTemplate("{query}")})


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("max_document_tokens", 0), ("max_prompt_tokens", 9)])
def test_bad_arguments_are_named(llm, name, value):
    with pytest.raises(ValueError, match=name):
        ListwiseGrader(llm, **{name: value})


def test_credentials_are_not_tried_again_in_plain_text(chat_server):
    chat_server.reply = lambda question: error(401)
    llm = OpenAI(model="gpt-4o-mini", api_base=chat_server.url, api_key="k")
    assert ListwiseGrader(llm).grade(QUERY, NODES) == [None] * 3
    assert chat_server.calls == 1
