"""Grades of a list, in every form that models give it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_refine.graders.listwise import grades_of, verdicts_in

A, B = '[{"document": 1, "relevance": 10}, {"document": 2, "relevance": 0}]', "[0, 10]"


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        (f"<think>Upside down: {B}</think>{A}", [1.0, 0.0]),
        (f"Draft: {B}\nFinal: {A}", [None, None]),
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


MORE = {
    '{"doc1": 10, "doc2": 0}': [1.0, 0.0],
    '{"Document 1": {"relevance": 10}, "Document 2": {"relevance": 0}}': [1.0, 0.0],
    '{"doc_1": {"score": 10, "reason": "3 of 5"}, "doc_2": {"score": 0}}': [1.0, 0.0],
    # Which is the document, and which the relevance?
    "[[1, 10], [2, 0]]": [None, None],
    "[[2, 10], [2, 0]]": [None, None],
    '[{"document": "Document 1", "relevance": 10}, {"document": "doc 2", "relevance": 0}]': [1.0, 0.0],
    '[{"document_id": 1, "relevance_score": 10}, {"document_id": 2, "relevance_score": 0}]': [1.0, 0.0],
    '[{"document": 1, "relevance": {"score": 10}}, {"document": 2, "relevance": {"score": 0}}]': [1.0, 0.0],
    # counted from 0
    '[{"index": 0, "relevance": 10}, {"index": 1, "relevance": 0}]': [1.0, 0.0],
    '[{"index": 1, "relevance": 10}, {"index": 2, "relevance": 0}, {"index": 0, "relevance": 3}]': [1.0, 0.0],
    '[{"index": 0, "relevance": 10}]': [None, None],
    # nearly JSON
    "[{'document': 1, 'relevance': 10}, {'document': 2, 'relevance': 0}]": [1.0, 0.0],
    '[{"document": 1, "relevance": 10,}, {"document": 2, "relevance": 0,},]': [1.0, 0.0],
    "[{document: 1, relevance: 10}, {document: 2, relevance: 0}]": [1.0, 0.0],
    "- document: 1\n  relevance: 10\n- document: 2\n  relevance: 0": [1.0, 0.0],
    # words
    "1. 10\n2. 0": [1.0, 0.0],
    "Document 1 (relevance 10)\nDocument 2 (relevance 0)": [1.0, 0.0],
    "Document 1: Relevance score 10 because it fits\nDocument 2: Relevance score 0": [None, None],
    "Document 1: names 3 cats. Relevance: 10\nDocument 2: nothing. Relevance: 0": [None, None],
    "### Document 1\n- Relevance: 10\n### Document 2\n- Relevance: 0": [1.0, 0.0],
    "| Document | Relevance |\n|---|---|\n| 1 | 10 |\n| 2 | 0 |": [1.0, 0.0],
    "1: 3 cats are named\n2: 2 dogs": [None, None],
    "Document 1: 4/5\nDocument 2: 1/5": [None, None],
    "Document 1: 90%\nDocument 2: 10%": [None, None],
    "Document 1: 3\nDocument 1: 9\nDocument 2: 0": [None, 0.0],
}


@pytest.mark.parametrize("text", MORE)
def test_verdicts_in_other_forms(text):
    assert grades_of(verdicts_in(text, 2), 2) == MORE[text]


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        ('[{"document": 1, "relevance": 7}, {"document": 2, "relevance": 0}]', [0.7, 0.0]),
        ('```json\n{"verdicts": [{"doc": "1", "score": "7"}, {"doc": 2, "score": 0}]}\n```', [0.7, 0.0]),
        ('Sure! Here it is: {"1": 7, "document 2": 3} Hope it helps {"', [0.7, 0.3]),
        ("[7, 3]", [0.7, 0.3]),
        ("Doc: 1, Relevance: 7\nDoc: 2, Relevance: 3", [0.7, 0.3]),
        ("1: 7\n2: 3/10", [0.7, 0.3]),
        ("[1] 7\n[2] 3", [0.7, 0.3]),
        ('[{"document": 1, "relevance": 7}, {"document": 2, "relev', [0.7, None]),
        ('[{"document": 1, "relevance": 7}, {"document": 1, "relevance": 9}]', [0.8, None]),
        ('[{"document": 9, "relevance": 7}, {"document": 0, "relevance": 7}]', [None, None]),
        ('[{"document": 1, "relevance": NaN}, {"document": 2, "relevance": 70}]', [None, None]),
        ('[{"document": 1, "relevance": "high"}, {"document": 2, "relevance": true}]', [None, None]),
        ("I cannot judge these documents.", [None, None]),
        ("", [None, None]),
        ("[" * 5000, [None, None]),
        ('{"document": 1, "relevance": ' + "9" * 400 + "}", [None, None]),
    ],
)
def test_verdicts_in_text(text, grades):
    assert grades_of(verdicts_in(text, 2), 2) == pytest.approx(grades)


@settings(max_examples=50)
@given(st.text() | st.recursive(st.none() | st.floats() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_whatever_the_text_there_is_one_grade_or_none_a_document(text):
    grades = grades_of(verdicts_in(text, 3), 3)
    assert len(grades) == 3
    assert all(grade is None or 0 <= grade <= 1 for grade in grades)
