"""Grades of numbered documents, from whatever an LLM makes of a request for JSON."""

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
_REVISED = re.compile(
    r"\b(?:draft|initial|first|final|finally|revised|corrected|correction|actual|instead|better)", re.IGNORECASE
)

_DOCUMENT_KEYS = ("document", "doc", "document_number", "document_id", "doc_id", "number", "id", "index")
_RELEVANCE_KEYS = ("relevance", "score", "relevance_score", "grade", "rating")
# A document's number, as a key or a value: "2", "Document 2", "doc_2".
_DOCUMENT = re.compile(r"\s*(?:doc(?:ument)?)?[\s_#-]*(\d{1,9})\s*", re.IGNORECASE)
_MARK = r"(?P<relevance>\d{1,9}(?:\.\d{1,9})?)(?![\d%])(?!\.\d)(?!\s*(?:/|out of)\s*(?!10\b)\d)"
# One document a line: "Document 3: 7", "3) relevance 7/10", "| 3 | 7 |"; not "3: 7 cats".
_LINE = re.compile(
    r"^[^\w\n]{0,12}(?:doc(?:ument)?)?\W{0,12}(?P<document>\d{1,9})\W{0,6}?(?:[:,=)\]|\-]|\.(?=\s))\W{0,12}"
    rf"(?P<label>relevance|score|grade|rating)?\W{{0,12}}{_MARK}"
    r"(?(label)\b|(?=\s*(?:$|[/.,;:(\[|*_`\u2013\u2014-]|out of\b)))",
    re.IGNORECASE | re.MULTILINE,
)
# Or a document and its relevance by name, whatever stands between them: YAML, Python's and JavaScript's objects, prose.
_NAMES = r"\b(?:doc(?:ument)?\b|relevance|score|grade|rating)"
_ENTRY = re.compile(
    rf"\bdoc(?:ument)?(?:_?(?:number|id))?[\W_]{{0,12}}(?P<document>\d{{1,9}})\b(?:(?!{_NAMES})[\s\S]){{0,400}}?"
    rf"\b(?:relevance|score|grade|rating)\b[\W_]{{0,12}}(?:(?:score|rating|is|of|at)\b[\W_]{{0,12}}){{0,2}}{_MARK}",
    re.IGNORECASE,
)


def grades_of(verdicts: Iterable[tuple[float, float]], count: int) -> list[float | None]:
    """Turn verdicts into grades.

    :param verdicts: pairs of a document's number, from 1, and its relevance, from 0 to 10.
    :param count: how many documents there are.
    :return: one grade in [0, 1] a document: the mean where it was judged repeatedly, None where it was forgotten or its
        relevance is not on the scale. Numbers of documents that do not exist are dropped, and where they are counted
        from 0 that is so only if all are there.
    """
    found = defaultdict(list)
    verdicts = list(verdicts)
    numbers = {document for document, _ in verdicts}
    first = 1
    if 0 in numbers and count not in numbers:
        if numbers != {*range(count)}:
            return [None] * count
        first = 0
    for document, relevance in verdicts:
        if math.isfinite(relevance) and 0 <= relevance <= HIGHEST:
            found[document].append(relevance / HIGHEST)
    return [sum(found[n]) / len(found[n]) if n in found else None for n in range(first, first + count)]


def verdicts_in(text: str, count: int) -> list[tuple[float, float]]:
    """Find verdicts in a text that should have been JSON.

    :param text: an LLM's answer: JSON in any of the usual shapes, alone or in prose or cut off, or lines like
        "Document 3: 7".
    :param count: how many documents there are; a bare list of so many numbers is their relevances.
    :return: pairs of number and relevance, none where there are none.
    """
    text = _FORM.sub("", answer_in(text))
    values = [(start, dict_of(_verdicts(value, count))) for start, _, value in json_in(text)]
    found = _last_word(text, [(start, verdicts) for start, verdicts in values if verdicts])
    return found if found is not None else _in_words(text)


def _in_words(text: str) -> list[tuple[float, float]]:
    """Find verdicts in a text without JSON; none of a document of which it says two different things."""
    found = [
        (float(match["document"]), float(match["relevance"]))
        for form in (_LINE, _ENTRY)
        for match in form.finditer(text)
    ]
    marks = dict_of(found)
    return [(document, several[0]) for document, several in marks.items() if len({*several}) == 1]


def dict_of(verdicts: Iterable[tuple[float, float]]) -> dict[float, list[float]]:
    """Collect relevances by document."""
    found: dict[float, list[float]] = defaultdict(list)
    for document, relevance in verdicts:
        found[document].append(relevance)
    return dict(found)


def _last_word(text: str, values: list[tuple[int, dict[float, list[float]]]]) -> list[tuple[float, float]] | None:
    """Put together what several pieces of JSON say. Of two that differ the later counts where one is called a draft."""
    if not values:
        return None
    known: dict[float, list[float]] = {}
    doubtful: set[float] = set()
    end = 0
    for start, verdicts in values:
        differing = {document for document in verdicts if document in known and verdicts[document] != known[document]}
        if not _REVISED.search(text, end, start):
            doubtful |= differing
        known |= verdicts
        end = start
    return [(document, one) for document, several in known.items() if document not in doubtful for one in several]


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
        numbers = [_number(item) for item in value]
        if len(numbers) == count and all(number is not None for number in numbers):
            yield from ((place, number) for place, number in enumerate(numbers, start=1) if number is not None)
            return
        pairs = [item for item in value if isinstance(item, list) and len(item) == 2]
        if pairs and len(pairs) == len(value):
            if len({_number(document) for document, _ in pairs} - {None}) == len(pairs):
                yield from _verdicts({str(document): mark for document, mark in pairs}, count)
            return
        for item in value:
            yield from _verdicts(item, count)


def _first(value: dict[str, Any], keys: tuple[str, ...], read: Callable[[Any], float | None]) -> float | None:
    lowered = {str(key).lower(): inner for key, inner in value.items()}
    return next((number for key in keys if (number := read(lowered.get(key))) is not None), None)


def _document(value: Any) -> float | None:
    match = _DOCUMENT.fullmatch(value) if isinstance(value, str) and len(value) < 100 else None
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
