"""ScaleGrader."""

from __future__ import annotations

import pytest

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.llm import ScaleGrader
from llama_index_refine.graders.reading import number
from tests.chat_server import Reply
from tests.graders.conftest import NODES, QUERY


def test_expected_value_over_the_digits(llm, chat_server):
    chat_server.reply = lambda question: Reply("2", [{"2": 0.5, "3": 0.3, " 1": 0.1, "▁0": 0.05, "7": 0.05}])
    grades = ScaleGrader(llm, retries=0).grade(QUERY, NODES[:1])
    assert grades == [pytest.approx((0.5 * 2 + 0.3 * 3 + 0.1) / 0.95 / 3)]
    assert "3: it is dedicated to the query" in chat_server.questions[0].prompt
    assert "0 to 3." in chat_server.questions[0].prompt


async def test_own_rubric_from_text(llm, chat_server):
    chat_server.reply = lambda question: Reply("Score: 1/1")
    assert await ScaleGrader(llm, rubric=["no", "yes"], retries=0).agrade(QUERY, NODES[:1]) == [1.0]


@pytest.mark.parametrize("rubric", [["one"], [str(level) for level in range(11)], "text"])
def test_bad_rubric(llm, rubric):
    with pytest.raises(ValueError, match="rubric"):
        ScaleGrader(llm, rubric=rubric)


def test_rubric_is_part_of_the_fingerprint(llm):
    assert ScaleGrader(llm).fingerprint() != ScaleGrader(llm, rubric=["no", "yes"]).fingerprint()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        (" 2.", 2),
        ("**1**", 1),
        ("2/3", 2),
        ("Score: 2.5 out of 3", 2.5),
        ("The relevance is 1, because 2 parts match", 1),
        ("<think>3 maybe 2</think>0", 0),
        ("4", None),
        ("-1", None),
        ("nan", None),
        ("", None),
        ("I'm sorry, I cannot rate this 1", None),
        ("none", None),
        ("12", None),
    ],
)
def test_numbers_in_text(text, value):
    assert number(Answer(text), 3) == value


def test_a_number_off_the_scale_gives_no_grade(llm, chat_server):
    chat_server.reply = lambda question: Reply("9", [{"9": 0.99, "8": 0.01}])
    assert ScaleGrader(llm, retries=0).grade(QUERY, NODES[:1]) == [None]
