"""What an error repeats of a question is no word of the server's, however it is spelled."""

from __future__ import annotations

import html
import json
from collections.abc import Callable

import pytest
from llama_index.core.schema import TextNode

from llama_index_refine.graders.asking.errors import ServerError, words_of
from llama_index_refine.graders.asking.failures import Remedy, judge
from llama_index_refine.graders.openai import OpenAIGrader
from tests.chat_server import Question, Reply, error, overlap
from tests.graders.conftest import NODES, QUERY

TEXTS = [
    "my account was suspended,\ninsufficient funds",
    "Rate limit reached: 3 per day. Caf\u00e9 \u201cquota\u201d",
    "the context length is too long, image input is not supported",
    "logprobs are not supported, max_tokens must be at least 32",
    '{"error": {"code": "insufficient_quota", "message": "credit balance is too low"}}',
]
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": json.dumps,
    "JSON twice": lambda text: json.dumps(json.dumps(text)),
    "Python": repr,
    "ASCII": ascii,
    "HTML": html.escape,
    "capitals": str.upper,
    "its end": lambda text: text[-30:],
}


def refusing(spell: Callable[[str], str], status: int) -> Callable[[Question], Reply]:
    def reply(question: Question) -> Reply:
        if "cats" in question.document:
            return overlap(question)
        return error(status, f"1 validation error: {spell(question.document)}")

    return reply


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_a_server_quotes_cost_only_their_own_grades(chat_server, spelling, text):
    chat_server.reply = refusing(SPELLINGS[spelling], 400)
    grader = OpenAIGrader("m", chat_server.url, "k", retries=0, on_error="raise")
    assert grader.grade(QUERY, NODES[:1]) == pytest.approx([0.9])
    assert grader.grade(QUERY, [TextNode(text=f"{number} {text}") for number in range(6)]) == [None] * 6
    assert grader.grade(QUERY, [NODES[0], NODES[2]]) == pytest.approx([0.9, 0.9])


def test_what_only_the_server_says_counts():
    sent = words_of("cats purr softly and have no quota of fish")
    assert judge(ServerError({"error": {"message": "You exceeded your current quota", "code": 429}}), sent).remedy is (
        Remedy.STOP
    )
    assert judge(ServerError({"error": {"message": "no quota of fish", "code": 400}}), sent).remedy is Remedy.ADAPT
