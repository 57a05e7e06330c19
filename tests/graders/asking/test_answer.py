"""What of a reply is the answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.graders.asking.answer import Answer, Unreadable, answer_in, found, reply_of
from llama_index_refine.graders.asking.errors import ServerError
from llama_index_refine.graders.listwise import grades_of, verdicts_in
from llama_index_refine.graders.reading import number, yes_or_no
from tests.graders.asking.answers import POSITIONS, SCRAPS, TEXTS


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **fields}, "finish_reason": fields.pop("finish", "stop")}]}


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (message(content="Yes"), "Yes"),
        (message(content=[{"type": "text", "text": "Yes"}]), "Yes"),
        (message(content=["Y", "es"]), "Yes"),
        (
            message(
                content=[
                    {"type": "thinking", "thinking": [{"type": "text", "text": "No"}]},
                    {"type": "text", "text": "Yes"},
                ]
            ),
            "Yes",
        ),
        (message(content=[{"type": "reasoning", "text": "No"}, {"type": "output_text", "text": "Yes"}]), "Yes"),
        (message(content=[{"thought": True, "text": "No"}, {"text": "Yes"}]), "Yes"),
        (message(content="Yes", reasoning_content="No"), "Yes"),
        (message(content="", reasoning="The question is simple. Yes"), "Yes"),
        (message(content=None, reasoning_content="No? It has cats.\nSo the answer is: yes"), "So the answer is: yes"),
        (message(content="<think>No", reasoning="It is. Yes"), "Yes"),
        (message(content=None, reasoning='Let me see.\n{"relevant": true}'), '{"relevant": true}'),
        ({"choices": [{"text": " Yes", "finish_reason": "stop"}]}, " Yes"),
        (SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="Yes"))]), "Yes"),
    ],
)
def test_the_answer_is_found_in_the_message(completion, text):
    answer = reply_of(completion)
    assert found(answer) == text
    assert yes_or_no(answer) == 1


def test_thoughts_that_were_cut_short_are_no_answer():
    completion = {"choices": [{"message": {"content": None, "reasoning": "It is. Yes"}, "finish_reason": "length"}]}
    assert yes_or_no(reply_of(completion)) is None


@pytest.mark.parametrize(
    ("completion", "failure"),
    [
        ({"choices": []}, Unreadable),
        ({"choices": None}, Unreadable),
        ("Yes", Unreadable),
        (None, Unreadable),
        ({"error": {"message": "no"}}, ServerError),
        ({"choices": [{"error": {"code": 502}, "message": {"content": None}}]}, ServerError),
        ({"object": "error", "message": "no"}, ServerError),
    ],
)
def test_what_is_no_message_is_said_to_be_none(completion, failure):
    with pytest.raises(failure):
        reply_of(completion)


@settings(max_examples=300)
@given(TEXTS, TEXTS, POSITIONS, st.lists(SCRAPS, max_size=6), st.booleans())
def test_whatever_was_said_there_is_a_grade_or_none(text, thoughts, positions, said, cut_short):
    answer = Answer(text, positions, cut_short, thoughts=thoughts, said=said)
    grade, mark = yes_or_no(answer), number(answer, 3)
    assert grade is None or 0 <= grade <= 1
    assert mark is None or 0 <= mark <= 3
    assert isinstance(answer_in(text), str)
    assert all(one is None or 0 <= one <= 1 for one in grades_of(verdicts_in(text, 3), 3))


KEYS = st.sampled_from(
    ["choices", "message", "content", "text", "type", "thinking", "reasoning", "logprobs", "top_logprobs"]
)
NAMES = KEYS | st.sampled_from(["token", "logprob", "finish_reason", "error", "refusal", "thought", "usage", "object"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300)
@given(ANYTHING, ANYTHING, ANYTHING)
def test_whatever_came_it_is_a_reply_or_said_to_be_none(whole, choice, content):
    for completion in (
        whole,
        {"choices": whole},
        {"choices": [choice], "error": whole},
        {"choices": [{"message": {"content": content, "reasoning": whole}, "logprobs": choice}]},
        {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": content, "top_logprobs": whole}}]},
    ):
        try:
            answer = reply_of(completion)
        except (Unreadable, ServerError):
            continue
        assert isinstance(answer.text, str)
        assert isinstance(answer.thoughts, str)
        assert yes_or_no(answer) in (None, *[pytest.approx(p) for p in (0.0, 1.0)]) or answer.tokens
