# ruff: noqa: RUF001
"""Numbers, in every form that models give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.reading import number
from tests.graders.asking.answers import MUSINGS, THINKING, THOUGHTS, tokens

NUMBERS = {
    "3": 3,
    "0": 0,
    "**2**": 2,
    "2/3": 2,
    "2 out of 3": 2,
    "2,5": 2.5,
    "Score: 2": 2,
    "score of 2": 2,
    "Relevance score: **2** (somewhat relevant)": 2,
    "On a scale of 0 to 3: 2": 2,
    "On a scale from 0 to 3, I would rate this document a 2.": None,
    "Relevance (0-3): 1": 1,
    "Rating (out of 3): 1": 1,
    "Grade: 2 of 3": 2,
    "On a scale of 0 to 3, where 0 is nothing and 3 is perfect: 2": None,
    "The scale is 0, 1, 2, or 3. Score: 1": 1,
    "(0 = nothing, 3 = all of it) Answer: 1": None,
    "I would give it a 2": None,
    "The relevance is 1, because 2 parts match": 1,
    "Level 2: it has some answer": 2,
    "2: it has some answer": 2,
    "3 because it names 12 cats": None,
    "Answer:\n\n2": 2,
    "The document names 12 cats.\n\nScore: 2": 2,
    '{"score": 2}': 2,
    '{"relevance": 2, "confidence": 3}': 2,
    '{"score": "2/3", "max_score": 3}': 2,
    '```json\n{"rating": 1, "reason": "2 of 3 parts"}\n```': 1,
    "<answer>1</answer>": 1,
    r"\boxed{2}": 2,
    "Score: two": None,
    "<think>3? On a scale of 0 to 3: 3</think>On a scale of 0 to 3: 2": 2,
    "Initial score: 3. Final score: 1": 1,
    "Query: 2 cats. Score: 2": 2,
    # doubtful
    "4": None,
    "-1": None,
    "8/10": None,
    "3/5": None,
    "Score: 3/5": None,
    "2 of 3 parts match": None,
    "70%": None,
    "1 or 2": None,
    "1-2": None,
    "Score: 1-2": None,
    "Between 1 and 2": None,
    "Score: 1. Score: 2": None,
    "The document has 3 parts about cats.": None,
    "1. **Analyse the request**": None,
    "1. The query asks for cats\n2. The document has none": None,
    "On a scale of 0 to 3": None,
    "0: nothing\n1: a little\n2: some\n3: all of it": None,
    "none": None,
    "I'm sorry, I cannot rate this 1": None,
    "1,000": None,
    "": None,
}

NUMBERS |= {
    # scales that are said again, and those that are others
    "2 on a 0-3 scale": None,
    "Score from 0 (worst) to 3 (best): 2": None,
    "0 = nothing, 1 = a bit, 2 = most, 3 = all\n\nScore: 1": 1,
    "0: none, 1: some, 2: most, 3: all. Score: 2": None,
    "- 0: none\n- 1: some\n- 2: most\n- 3: all\n\nScore: 2": 2,
    "On a scale of 1 to 5: 2": None,
    "On a scale of 0 to 10, 2": None,
    "Relevance (0-5): 2": None,
    "Relevance (1-10): 3": None,
    # other languages
    "2 de 3": None,
    "2 из 3": None,
    "2 sur 3": None,
    "2 von 5": None,
    "评分：2分": None,
    "2점": None,
    # letters and signs
    "The score is two.": None,
    "**Three**": None,
    "The score is one of them": None,
    "2+": None,
    "<2": None,
    "~~3~~ 2": None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    assert number(Answer(text), 3) == NUMBERS[text]


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        (Answer("3", tokens(*THOUGHTS, {"3": 0.9, "1": 0.1})), 2.8),
        (
            Answer("On a scale of 0 to 3: 2", tokens("On a scale of ", "0", " to ", "3", ": ", {"2": 0.5, "3": 0.5})),
            2.5,
        ),
        (Answer('{"score": 2}', tokens('{"score', '":', {" 2": 0.5, " 0": 0.5}, "}")), 1.0),
        (Answer("", tokens({"1": 0.97, "I": 0.03}, "."), cut_short=True, thoughts="1. **Analyse"), None),
        (Answer("3", tokens({"3": 0.8078444177125654})), 3.0),
        (Answer("2.5", tokens({"2": 0.5, "3": 0.5}, ".5")), 2.5),
    ],
)
def test_the_digits_of_the_answer_count_and_no_others(answer, grade):
    assert (number(answer, 3) or 0) <= 3
    assert number(answer, 3) == (pytest.approx(grade) if grade is not None else None)


SCALES = st.sampled_from(["", "On a scale of 0 to 3: ", "Relevance (0-3): ", "Score: ", "Rating: ", "The score is "])
ENDS = st.sampled_from(["", ".", "/3", " out of 3", "\n", " (partly)", "\n\nIt names cats."])


@given(THINKING, MUSINGS, SCALES, st.sampled_from(["{}", "**{}**", "`{}`"]), ENDS, st.integers(0, 3))
def test_the_number_is_read_in_every_template(thinking, musing, scale, wrap, end, value):
    text = thinking.replace("{}", musing) + scale + wrap.replace("{}", f"{value}{end}" if "/" in end else str(value))
    assert number(Answer(text + ("" if "/" in end else end)), 3) == value
