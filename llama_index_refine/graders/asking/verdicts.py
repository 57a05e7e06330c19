"""Grades of numbered documents, from what an LLM makes of a request for JSON."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llama_index_refine.graders.asking.answer import answer_in, json_in

HIGHEST = 10

# The form that the question shows, where a model repeats it.
_FORM = re.compile(r'\[\{"document": 1, "relevance": 0\}, \{"document": 2, "relevance": 10\}, \.\.\.\]')
_REVISED = re.compile(r"\b(?:final|revised|corrected)", re.IGNORECASE)
_DOCUMENT_KEYS = ("document", "doc", "document_number", "document_id", "doc_id", "number", "id", "index")
_RELEVANCE_KEYS = ("relevance", "score", "relevance_score", "grade", "rating")
# A document's number, as a key or a value: "2", "Document 2", "doc_2".
_DOCUMENT = re.compile(r"\s*(?:doc(?:ument)?)?[\s_#-]*(\d{1,9})\s*", re.IGNORECASE)
_MARK = r"(?P<relevance>\d{1,9}(?:\.\d{1,9})?)(?![\d%])(?!\.\d)(?!\s*(?:/|out of)\s*(?!10\b)\d)"
# A document and its relevance by name, as in what is nearly JSON, or on a line by themselves: "3) 7/10", "| 3 | 7 |".
_ENTRY = re.compile(
    rf"\bdoc(?:ument)?\W{{0,12}}(?P<document>\d{{1,9}})\W{{1,12}}(?:relevance|score|grade|rating)\W{{1,12}}{_MARK}",
    re.IGNORECASE,
)
_LINE = re.compile(
    rf"^[^\w\n]{{0,12}}(?:doc(?:ument)?)?\W{{0,12}}(?P<document>\d{{1,9}})\s*[:,=)\]|.-]\W{{0,12}}{_MARK}"
    r"\s*(?:/\s*10|out of 10)?[\s|*.]*$",
    re.IGNORECASE | re.MULTILINE,
)


def grades_of(verdicts: Iterable[tuple[float, float]], count: int) -> list[float | None]:
    """Turn verdicts into grades.

    :param verdicts: pairs of a document's number, from 1, and its relevance, from 0 to 10.
    :param count: how many documents there are.
    :return: one grade in [0, 1] a document: the mean where it was judged repeatedly, None where it was forgotten or its
        relevance is not on the scale. Numbers of documents that do not exist are dropped, and where they are counted
        from 0 that is so only if all are there.
    """
    found = _by_document(verdicts)
    first = 1
    if 0 in found and count not in found:
        if found.keys() != {*range(count)}:
            return [None] * count
        first = 0
    marks = [
        [m for m in found.get(n, ()) if math.isfinite(m) and 0 <= m <= HIGHEST] for n in range(first, first + count)
    ]
    return [sum(several) / len(several) / HIGHEST if several else None for several in marks]


def verdicts_in(text: str, count: int) -> list[tuple[float, float]]:
    """Find verdicts in a text that should have been JSON.

    :param text: an LLM's answer: JSON in any of the usual shapes, alone or in prose or cut off, or lines like
        "Document 3: 7".
    :param count: how many documents there are; a bare list of so many numbers is their relevances.
    :return: pairs of number and relevance, none where there are none, nor of a document of which different things are
        said.
    """
    text = _FORM.sub("", answer_in(text))
    known: dict[float, list[float]] = {}
    doubtful: set[float] = set()
    end = 0
    for start, after, value in json_in(text):
        verdicts = _by_document(_verdicts(value, count))
        # Of two lists that differ the later counts where it is called the final one.
        if not _REVISED.search(text, end, start):
            doubtful |= {number for number in verdicts if known.get(number, verdicts[number]) != verdicts[number]}
        known |= verdicts
        end = after if verdicts else end
    if not known:
        pairs = (match.group("document", "relevance") for form in (_ENTRY, _LINE) for match in form.finditer(text))
        known = _by_document((float(number), float(mark)) for number, mark in pairs)
        doubtful = {number for number, marks in known.items() if len({*marks}) > 1}
    return [(number, mark) for number, marks in known.items() if number not in doubtful for mark in marks]


def _by_document(verdicts: Iterable[tuple[float, float]]) -> dict[float, list[float]]:
    found: dict[float, list[float]] = defaultdict(list)
    for document, relevance in verdicts:
        found[document].append(relevance)
    return dict(found)


def _verdicts(value: Any, count: int) -> Iterator[tuple[float, float]]:
    if isinstance(value, dict):
        document = _first(value, _DOCUMENT_KEYS, _document)
        relevance = _first(value, _RELEVANCE_KEYS, _relevance)
        if document is not None and relevance is not None:
            yield document, relevance
            return
        for key, inner in value.items():
            number, relevance = _document(str(key)), _relevance(inner)
            if number is not None and relevance is not None:
                yield number, relevance
            else:
                yield from _verdicts(inner, count)
    elif isinstance(value, list):
        numbers = [number for item in value if (number := _number(item)) is not None]
        pairs = {_number(item[0]): item[1] for item in value if isinstance(item, list) and len(item) == 2}
        if len(numbers) == count == len(value):
            yield from enumerate(numbers, start=1)
        elif pairs and len(pairs) == len(value):
            yield from _verdicts({str(number): mark for number, mark in pairs.items()}, count)
        elif not pairs:
            for item in value:
                yield from _verdicts(item, count)


def _first(value: dict[str, Any], keys: tuple[str, ...], read: Callable[[Any], float | None]) -> float | None:
    lowered = {str(key).lower(): inner for key, inner in value.items()}
    return next((number for key in keys if (number := read(lowered.get(key))) is not None), None)


def _document(value: Any) -> float | None:
    match = _DOCUMENT.fullmatch(value[:100]) if isinstance(value, str) else None
    return float(match[1]) if match else _number(value)


def _relevance(value: Any) -> float | None:
    """Read a mark, also one that an object holds beside its reason."""
    return _first(value, _RELEVANCE_KEYS, _number) if isinstance(value, dict) else _number(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        value = re.sub(rf"\s*(?:/|out of)\s*{HIGHEST}\s*\Z", "", value[:100])
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
