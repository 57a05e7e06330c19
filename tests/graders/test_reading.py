# ruff: noqa: RUF001, RUF005
"""What answers say, in every form that models give them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.graders.asking.answer import answer_in, found, reply_of
from llama_index_refine.graders.asking.calls import Unreadable
from llama_index_refine.graders.asking.errors import ServerError
from llama_index_refine.graders.asking.verdicts import grades_of, verdicts_in
from llama_index_refine.graders.chat import Answer
from llama_index_refine.graders.reading import number, yes_or_no

YES_OR_NO = {
    # JSON
    '{"relevant": false}': 0,
    '{"relevant": true, "reason": "No better one exists."}': 1,
    '{"reason": "It has no cats in it", "relevant": "no"}': 0,
    '{"is_relevant": 0}': 0,
    '{"irrelevant": true}': 0,
    '{"not_relevant": false}': 1,
    '{"answer": {"value": "Yes"}, "confidence": 1}': 1,
    '```json\n{\n  "verdict": "irrelevant"\n}\n```': 0,
    '{"relevance": "not relevant"}': 0,
    '{"relevant": true} {"relevant": false}': None,
    '{"relevant": "unclear"}': None,
    '{"relevant": false, "reason": "the text is cut': 0,
    "{'relevant': False}": 0,
    '["no"]': 0,
    # labels
    "Relevant: No": 0,
    "Relevant? No.": 0,
    "Correct answer: No": 0,
    "Relevance: Yes": 1,
    "**Answer:** no": 0,
    "**Relevant**: **Yes**": 1,
    "Answer - Yes": 1,
    "Relevant to the query: no": 0,
    "Is this document relevant to the query? Yes": 1,
    "Relevant (yes/no): no": 0,
    "Verdict: not relevant": 0,
    "Judgement: irrelevant": 0,
    "Irrelevant: no": 1,
    "Not relevant: true": 0,
    "### Answer\nYes": 1,
    "<answer>No</answer>": 0,
    "<relevant>yes</relevant>": 1,
    r"\boxed{\text{No}}": 0,
    r"The answer is $\boxed{Yes}$": 1,
    "relevant = false": 0,
    "Answer: Relevance: No": 0,
    "Initial answer: Yes\nFinal answer: No": 0,
    "Draft: Yes. Final verdict: no": 0,
    "Reasoning: cats are named.\nRelevant: Yes": 1,
    "Relevance: high": None,
    "The document is relevant: No": 0,
    "No\n\nReasoning: the document is relevant to weather only.": 0,
    "Verdict: ❌ No": 0,
    "答案：否": 0,
    "Réponse : non": 0,
    "Relevant: yes. Relevant: no.": None,
    "Answer: no idea": None,
    "Answer: not sure": None,
    # the first word
    "Yes": 1,
    "yes.": 1,
    "**No**": 0,
    "“Yes”": 1,
    "No, it is about rain.": 0,
    "Yes it is": 1,
    "No mention of cats is made": 0,
    "Relevant.": 1,
    "Relevant because it names cats": 1,
    "Irrelevant": 0,
    "Not relevant.": 0,
    "Not at all.": 0,
    "True": 1,
    "No doubt about it": None,
    "No. 5 on the list": None,
    "Yes and no": None,
    "Yes, but actually the document is not relevant.": 0,
    "Yes. It is about cats. The document is not relevant.": None,
    "No. Actually, the answer is yes": 1,
    "Yes. No.": None,
    "Not irrelevant": None,
    "Not sure": None,
    "Relevant?": None,
    # other languages, and their words that mean something else
    "Oui, le document parle de chats.": 1,
    "Nein": 0,
    "Ja.": 1,
    "Ja, es geht um Katzen": 1,
    "Da der Text von Regen handelt": None,
    "Si le document parle de chats": None,
    "Ya que": None,
    "Да, конечно": 1,
    "不相关": 0,
    "是的、相关。": 1,
    "不仅如此": None,
    "No es relevante": 0,
    # statements and the last word
    "This document is highly relevant to the query.": 1,
    "The document about cats is relevant.": 1,
    "The text isn't relevant.": 0,
    "It does not appear to be relevant": 0,
    "The document is not irrelevant": 1,
    "I don't think the document is relevant": 0,
    "The document is in no way relevant": 0,
    "It is unclear whether the document is relevant": None,
    "The document is only partially relevant": None,
    "The document might be relevant": None,
    "First the document is relevant. Therefore the document is not relevant.": 0,
    "The document is about cats, so yes": 1,
    "It names cats. Yes.": 1,
    "I have no": None,
    "That is hard to say": None,
    "I'm sorry, but I can't say whether it is relevant": None,
    "Answer with one word: Yes or No.": None,
    "": None,
    # thoughts
    "<think>Yes? No?</think>Yes": 1,
    "<think>It is relevant.</think>\n\nNo": 0,
    "It is relevant, yes.</think>\nNo": 0,
    "<think>a <think> yes </think> b</think> No": 0,
    "<think>so the answer is yes": None,
    "<thinking>yes</thinking><answer>no</answer>": 0,
    "<thought>yes</thought>no": 0,
    '<reasoning effort="low">yes</reasoning>no': 0,
    "<reflection>Yes</reflection>\nNo": 0,
    "<scratchpad>Yes</scratchpad>No": 0,
    "<seed:think>Yes</seed:think>No": 0,
    "<|begin_of_thought|>Yes<|end_of_thought|><|begin_of_solution|>No<|end_of_solution|>": 0,
    "<|START_THINKING|>Yes<|END_THINKING|><|START_RESPONSE|>No<|END_RESPONSE|>": 0,
    "[THINK]Yes[/THINK]No": 0,
    "◁think▷Yes◁/think▷No": 0,
    "<unused94>thought\nYes<unused95>No": 0,
    "<|channel>thought\nYes<channel|>No": 0,
    "<|channel|>analysis<|message|>Yes<|end|><|start|>assistant<|channel|>final<|message|>No<|return|>": 0,
    "<|channel|>analysis<|message|>Yes": None,
    "analysisThe answer is Yes.assistantfinalNo": 0,
    "Yes<|im_end|>": 1,
    "No</s>": 0,
}


@pytest.mark.parametrize("text", YES_OR_NO)
def test_yes_or_no(text):
    assert yes_or_no(Answer(text)) == YES_OR_NO[text]


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
    "On a scale from 0 to 3, I would rate this document a 2.": 2,
    "Relevance (0-3): 1": 1,
    "Rating (out of 3): 1": 1,
    "Grade: 2 of 3": 2,
    "On a scale of 0 to 3, where 0 is nothing and 3 is perfect: 2": 2,
    "The scale is 0, 1, 2, or 3. Score: 1": 1,
    "(0 = nothing, 3 = all of it) Answer: 1": 1,
    "I would give it a 2": 2,
    "The relevance is 1, because 2 parts match": 1,
    "Level 2: it has some answer": 2,
    "2: it has some answer": 2,
    "3 because it names 12 cats": 3,
    "Answer:\n\n2": 2,
    "The document names 12 cats.\n\nScore: 2": 2,
    '{"score": 2}': 2,
    '{"relevance": 2, "confidence": 3}': 2,
    '{"score": "2/3", "max_score": 3}': 2,
    '```json\n{"rating": 1, "reason": "2 of 3 parts"}\n```': 1,
    "<answer>1</answer>": 1,
    r"\boxed{2}": 2,
    "Score: two": 2,
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


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    assert number(Answer(text), 3) == NUMBERS[text]


def tokens(*said: Any) -> list[dict[str, float]]:
    return [one if isinstance(one, dict) else {one: 1.0} for one in said]


THOUGHTS = ("1", ".", " **", "Yes", " or", " no", "?\n")


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        (Answer("Yes", tokens(*THOUGHTS, {"Yes": 0.8, "No": 0.2})), 0.8),
        (Answer("Yes", tokens(*THOUGHTS, {"Yes": 0.8, "No": 0.2}, "<|im_end|>")), 0.8),
        (Answer('{"relevant": false}', tokens('{"', "relevant", '":', {" false": 0.9, " true": 0.1}, "}")), 0.1),
        (Answer("Relevant: No", tokens({"Relevant": 0.9, "Yes": 0.1}, ":", {" No": 0.7, " Yes": 0.3})), 0.3),
        (Answer("<think>Yes</think>No", tokens("<think>", "Yes", "</think>", {"No": 0.6, "Yes": 0.4})), 0.4),
        (Answer("irrelevant", tokens({"irre": 0.5, "relevant": 0.5}, "levant")), 0.0),
        (Answer("No", tokens({"Yes": 0.6, "No": 0.4}), said=["No"]), 0.6),
        (Answer("No", tokens({"Yes": 0.6, "No": 0.4})), 0.6),
        (Answer("No", tokens("Let", " me", " see")), 0.0),
        (Answer("Hm", tokens({"Hm": 0.6, "Yes": 0.3, "No": 0.1})), 0.75),
        (Answer("Yes. Actually no", tokens({"Yes": 0.9, "No": 0.1}, ".", " Actually", {" no": 0.8, " yes": 0.2})), 0.2),
        (Answer("Yes. Relevant: no", tokens({"Yes": 0.9, "No": 0.1}, ".", " Relevant", ":", " no")), None),
        (Answer("", tokens({"Yes": 0.9, "No": 0.1}), cut_short=True), None),
    ],
)
def test_the_log_probabilities_of_the_answer_count_and_no_others(answer, grade):
    assert yes_or_no(answer) == (pytest.approx(grade) if grade is not None else None)


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
    assert found(answer)[0] == text
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


A, B = '[{"document": 1, "relevance": 10}, {"document": 2, "relevance": 0}]', "[0, 10]"


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        (f"<think>Upside down: {B}</think>{A}", [1.0, 0.0]),
        (f"Draft: {B}\nFinal: {A}", [1.0, 0.0]),
        (f"{B}\n{A}", [None, None]),
        (f"{A}\n{A}", [1.0, 0.0]),
        ('{"document": 1, "relevance": 10}\n{"document": 2, "relevance": 0}', [1.0, 0.0]),
        (f"<|channel|>analysis<|message|>{B}<|end|><|channel|>final<|message|>{A}", [1.0, 0.0]),
        ('[{"document": 1, "relevance": "10/10"}, {"document": 2, "relevance": "0"}]', [1.0, 0.0]),
        ('[{"document": 1, "relevance": 0}, {"document": 2, "relevance": 10}, ...]', [None, None]),
        (f"<think>{A}", [None, None]),
    ],
)
def test_lists_are_read_from_the_answer(text, grades):
    assert grades_of(verdicts_in(text, 2), 2) == grades


LABELS = st.sampled_from(
    ["", "Relevant: ", "Relevance: ", "**Answer:** ", "Answer: ", "Verdict: ", "Relevant? ", "Final answer: "]
)
THINKING = st.sampled_from(
    [
        "",
        "<think>{}</think>\n",
        "<thinking>\n{}\n</thinking>",
        "{}</think>",
        "[THINK]{}[/THINK]",
        "<reasoning>{}</reasoning>\n",
    ]
    + ["<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>"]
)
MUSINGS = st.sampled_from(
    ["Yes? No?", "The answer is yes.", "It is not relevant.", "Score: 1", '{"relevant": true}', "No"]
)
WRAPS = st.sampled_from(
    ["{}", "{}.", "**{}**", "`{}`", "\n{}\n", '"{}"', "```\n{}\n```", "<answer>{}</answer>", "{}<|im_end|>"]
)
REASONS = st.sampled_from(["", " It speaks of cats.", "\n\nThe text is about rain in spring.", " (three words match)"])


@given(
    LABELS, THINKING, MUSINGS, WRAPS, REASONS, st.sampled_from([("Yes", 1.0), ("No", 0.0), ("yes", 1.0), ("NO", 0.0)])
)
def test_the_verdict_is_read_in_every_template(label, thinking, musing, wrap, reason, verdict):
    text = (
        thinking.replace("{}", musing)
        + wrap.replace("{}", label + verdict[0] if "**" not in wrap else verdict[0])
        + reason
    )
    assert yes_or_no(Answer(text)) == verdict[1]


@given(
    THINKING,
    MUSINGS,
    st.sampled_from(["relevant", "is_relevant", "answer", "verdict"]),
    st.booleans(),
    st.integers(0, 3),
)
def test_json_is_read_in_every_template(thinking, musing, key, verdict, indent):
    thoughts = thinking.replace("{}", musing)
    text = json.dumps({"reason": "No cats, yes rain", key: verdict}, indent=indent or None)
    assert yes_or_no(Answer(f"{thoughts}{text}")) == float(verdict)
    assert yes_or_no(Answer(f"{thoughts}```json\n{text}\n```")) == float(verdict)


SCALES = st.sampled_from(
    ["", "On a scale of 0 to 3: ", "Relevance (0-3): ", "Score: ", "Rating: ", "From 0 to 3, the score is "]
)
ENDS = st.sampled_from(["", ".", "/3", " out of 3", "\n", " (partly)", "\n\nIt names cats."])


@given(THINKING, MUSINGS, SCALES, st.sampled_from(["{}", "**{}**", "`{}`"]), ENDS, st.integers(0, 3))
def test_the_number_is_read_in_every_template(thinking, musing, scale, wrap, end, value):
    text = thinking.replace("{}", musing) + scale + wrap.replace("{}", f"{value}{end}" if "/" in end else str(value))
    assert number(Answer(text + ("" if "/" in end else end)), 3) == value


@given(THINKING, MUSINGS, st.floats(0.01, 0.99), st.sampled_from(["", "Relevant: "]))
def test_log_probabilities_are_read_in_every_template(thinking, musing, probability, label):
    word = "Yes" if probability >= 0.5 else "No"
    thoughts = thinking.replace("{}", musing)
    said = [*thoughts, *label, {"Yes": probability, "No": 1 - probability}]
    assert yes_or_no(Answer(f"{thoughts}{label}{word}", tokens(*said))) == pytest.approx(probability)
    assert yes_or_no(Answer(f"{label}{word}", tokens(*said))) == pytest.approx(probability)


SCRAPS = st.sampled_from(
    [
        "yes",
        "No",
        "relevant",
        "not ",
        "<think>",
        "</think>",
        "[THINK]",
        "{",
        "}",
        '"relevant": ',
        "true",
        "[",
        "]",
        ":",
        "3",
        "/3",
    ]
    + [
        "0 to 3",
        "Answer",
        "\n",
        ". ",
        "<|channel|>",
        "final",
        "<|message|>",
        "```",
        "out of",
        "is ",
        "\ud83d",
        "ß",
        "İ",
        "-",
    ]
)
TEXTS = st.text() | st.lists(SCRAPS, max_size=30).map("".join)
POSITIONS = st.lists(st.dictionaries(SCRAPS | st.text(max_size=3), st.floats(0, 1), max_size=3), max_size=6)


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
