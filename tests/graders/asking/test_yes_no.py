# ruff: noqa: RUF001
"""Yes or no, in every form that models give them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.reading import yes_or_no
from tests.graders.asking.answers import MUSINGS, THINKING, THOUGHTS, tokens

YES_OR_NO = {
    # JSON
    '{"relevant": false}': 0,
    '{"relevant": true, "reason": "No better one exists."}': 1,
    '{"reason": "It has no cats in it", "relevant": "no"}': 0,
    '{"is_relevant": 0}': 0,
    '{"irrelevant": true}': None,
    '{"not_relevant": false}': None,
    '{"answer": {"value": "Yes"}, "confidence": 1}': None,
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
    "Irrelevant: no": None,
    "Not relevant: true": None,
    "### Answer\nYes": 1,
    "<answer>No</answer>": 0,
    "<relevant>yes</relevant>": 1,
    r"\boxed{\text{No}}": 0,
    r"The answer is $\boxed{Yes}$": 1,
    "relevant = false": 0,
    "Answer: Relevance: No": None,
    "Initial answer: Yes\nFinal answer: No": 0,
    "Draft: Yes. Final verdict: no": 0,
    "Reasoning: cats are named.\nRelevant: Yes": 1,
    "Relevance: high": None,
    "The document is relevant: No": None,
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
    "Yes it is": None,
    "No mention of cats is made": None,
    "Relevant.": 1,
    "Relevant because it names cats": None,
    "Irrelevant": 0,
    "Not relevant.": 0,
    "Not at all.": 0,
    "True": 1,
    "No doubt about it": None,
    "No. 5 on the list": None,
    "Yes and no": None,
    "Yes, but actually the document is not relevant.": None,
    "Yes. It is about cats. The document is not relevant.": 1,
    "No. Actually, the answer is yes": 0,
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
    "No es relevante": None,
    # statements and the last word
    "This document is highly relevant to the query.": None,
    "The document about cats is relevant.": None,
    "The text isn't relevant.": None,
    "It does not appear to be relevant": None,
    "The document is not irrelevant": None,
    "I don't think the document is relevant": None,
    "The document is in no way relevant": None,
    "It is unclear whether the document is relevant": None,
    "The document is only partially relevant": None,
    "The document might be relevant": None,
    "First the document is relevant. Therefore the document is not relevant.": None,
    "The document is about cats, so yes": None,
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

YES_OR_NO |= {
    # marks, tables, boxes, crossed out words
    "Relevant -> No": 0,
    "Relevant → no": 0,
    "| Relevant | No |": 0,
    "~~Yes~~ No": None,
    "<del>Yes</del> No": None,
    "[ ] Yes [x] No": None,
    "☑ Yes ☐ No": None,
    r"\boxed{\textbf{No}}": 0,
    "«Да»": 1,
    # digits
    "0": 0,
    "**1**": 1,
    "10": None,
    "Relevant: 1": 1,
    "Relevance: 0": 0,
    "Relevance: 1/10": None,
    "Relevance score: 1": None,
    "Relevance score: 0": None,
    '{"relevance": 0.0}': None,
    '{"relevance": 0.5}': None,
    '{"score": 1}': None,
    # what comes before the answer, and after it
    "No<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes": 0,
    "[INST] [/INST] Yes": 1,
    "assistantfinalYes": 1,
    '<|channel|>final <|constrain|>json<|message|>{"relevant": false}': 0,
    # words
    "Absolutely not.": None,
    "Certainly not": None,
    "Highly relevant.": None,
    "It is irrelevant": None,
    "not-relevant": 0,
    "Unrelated.": 0,
    "The document is completely unrelated to the query.": None,
    "The document is related to cats": None,
    "Partially relevant": None,
    "無關": 0,
    "不相關。": 0,
    "有关": 1,
    "有关猫的文档": None,
    "関連なし": 0,
    "ไม่ใช่": 0,
    "Vâng": 1,
    "Relevante": 1,
    "Irrelevante.": 0,
}


@pytest.mark.parametrize("text", YES_OR_NO)
def test_yes_or_no(text):
    assert yes_or_no(Answer(text)) == YES_OR_NO[text]


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
        (Answer("No", tokens({"Yes": 0.6, "No": 0.4})), 0.0),
        (Answer("No", tokens("Let", " me", " see")), 0.0),
        (Answer("Hm", tokens({"Hm": 0.6, "Yes": 0.3, "No": 0.1})), 0.75),
        (Answer("Yes. Actually no", tokens({"Yes": 0.9, "No": 0.1}, ".", " Actually", {" no": 0.8, " yes": 0.2})), 0.9),
        (Answer("Yes. Relevant: no", tokens({"Yes": 0.9, "No": 0.1}, ".", " Relevant", ":", " no")), None),
        (Answer("", tokens({"Yes": 0.9, "No": 0.1}), cut_short=True), None),
    ],
)
def test_the_log_probabilities_of_the_answer_count_and_no_others(answer, grade):
    assert yes_or_no(answer) == (pytest.approx(grade) if grade is not None else None)


LABELS = st.sampled_from(
    ["", "Relevant: ", "Relevance: ", "**Answer:** ", "Answer: ", "Verdict: ", "Relevant? ", "Final answer: "]
)
WRAPS = st.sampled_from(
    ["{}", "{}.", "**{}**", "`{}`", "\n{}\n", '"{}"', "```\n{}\n```", "<answer>{}</answer>", "{}<|im_end|>"]
)
REASONS = st.sampled_from(["", ". It speaks of cats.", "\n\nThe text is about rain in spring.", " (three words match)"])


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


@given(THINKING, MUSINGS, st.floats(0.01, 0.99), st.sampled_from(["", "Relevant: "]))
def test_log_probabilities_are_read_in_every_template(thinking, musing, probability, label):
    word = "Yes" if probability >= 0.5 else "No"
    thoughts = thinking.replace("{}", musing)
    said = [*thoughts, *label, {"Yes": probability, "No": 1 - probability}]
    assert yes_or_no(Answer(f"{thoughts}{label}{word}", tokens(*said))) == pytest.approx(probability)
    assert yes_or_no(Answer(f"{label}{word}", tokens(*said))) == pytest.approx(probability)
