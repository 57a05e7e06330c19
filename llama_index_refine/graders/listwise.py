"""All nodes in one question, whose answer is JSON."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import Unpack

from llama_index_refine.graders.asking.answer import Answer, answer_in, found, json_in
from llama_index_refine.graders.asking.grader import AskingGrader, AskingOptions
from llama_index_refine.graders.asking.prompts import LISTWISE, LISTWISE_FORM, form_of, object_of
from llama_index_refine.graders.asking.showing import Shown, count_tokens, image_tokens
from llama_index_refine.graders.base import at_least
from llama_index_refine.graders.chat import LlamaIndexChat

HIGHEST = 10

# The form that the question shows, where a model repeats it.
_FORM = re.compile(r'\[\{"document": 1, "relevance": 0\}, \{"document": 2, "relevance": 10\}, \.\.\.\]')
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


def grades_of(verdicts: Mapping[float, Sequence[float]], count: int) -> list[float | None]:
    """Turn verdicts into grades.

    :param verdicts: each document's number, from 1, with its relevances, from 0 to 10.
    :param count: how many documents there are.
    :return: one grade in [0, 1] a document: the mean where it was judged repeatedly, None where it was forgotten or its
        relevance is not on the scale. Numbers of documents that do not exist are dropped, and where they are counted
        from 0 that is so only if all are there.
    """
    first = int(verdicts.keys() != {*range(count)})
    if first and 0 in verdicts and count not in verdicts:
        return [None] * count
    marks = [
        [m for m in verdicts.get(n, ()) if math.isfinite(m) and 0 <= m <= HIGHEST] for n in range(first, first + count)
    ]
    return [sum(several) / len(several) / HIGHEST if several else None for several in marks]


def verdicts_in(text: str, count: int) -> dict[float, list[float]]:
    """Find verdicts in a text that should have been JSON.

    :param text: an LLM's answer: JSON in any of the usual shapes, alone or in prose or cut off, or lines like
        "Document 3: 7".
    :param count: how many documents there are; a bare list of so many numbers is their relevances.
    :return: numbers and their relevances, none where there are none, nor of a document of which different things are
        said.
    """
    text = _FORM.sub("", answer_in(text))
    known: dict[float, list[float]] = {}
    doubtful: set[float] = set()
    for _, _, value in json_in(text):
        verdicts = _by_document(_verdicts(value, count))
        doubtful |= {number for number in verdicts if known.get(number, verdicts[number]) != verdicts[number]}
        known |= verdicts
    if not known:
        pairs = (match.group("document", "relevance") for form in (_ENTRY, _LINE) for match in form.finditer(text))
        known = _by_document((float(number), float(mark)) for number, mark in pairs)
        doubtful = {number for number, marks in known.items() if len({*marks}) > 1}
    return {number: marks for number, marks in known.items() if number not in doubtful}


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
        if len(numbers) == count == len(value):
            yield from enumerate(numbers, start=1)
        else:
            for item in filter(lambda item: isinstance(item, dict), value):
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


_NUMBER_SCHEMA = {"type": "integer", "description": "the number of the document, from 1"}
_RELEVANCE_SCHEMA = {"type": "number", "description": f"from 0 (about something else) to {HIGHEST} (what is sought)"}


class ListwiseGrader(AskingGrader):
    """Asks an LLM about all nodes at once, or a few times within a token budget: the fewest calls of all LLM teachers.

    The answer is JSON, with a schema (`response_format`) if the LLM takes one. A document that the answer leaves out
    gets None, an invented one is dropped, and a repeated one is averaged. The LLM sees all documents at once, so a
    hostile one can talk down the others. If that matters, use a grader that asks about each node by itself.

    :param llm: any LlamaIndex LLM; None is `Settings.llm`, looked up when it is needed.
    :param instruction: what the search is for, in a sentence; None for none.
    :param prompt: a prompt of your own with the variables query, documents, count and instruction.
    :param batch_size: the most nodes in one question, at least 1.
    :param max_prompt_tokens: the most tokens of documents in one question; more nodes go into another one.
    :param both_orders: ask again with the documents in reversed order and average, because LLMs favour what comes
        first. The spread then says how much the order mattered.
    :param asking: how documents are shown, and how its questions are asked: see `AskingOptions`; 4 questions at a time
        unless you say more, and 60 s for each.
    :raises ValueError: an argument out of its range.
    """

    needs = frozenset({"query", "documents"})

    def __init__(
        self,
        llm: LLM | None = None,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        batch_size: int = 20,
        max_prompt_tokens: int = 8000,
        both_orders: bool = False,
        **asking: Unpack[AskingOptions],
    ) -> None:
        verdict = object_of({"document": _NUMBER_SCHEMA, "relevance": _RELEVANCE_SCHEMA})
        form = form_of("Verdicts", {"verdicts": {"type": "array", "items": verdict}})
        patient: AskingOptions = {"concurrency": 4, "timeout": 60.0, **asking}
        super().__init__(LlamaIndexChat(llm), prompt or LISTWISE, instruction, form=form, form_first=True, **patient)
        at_least(1, batch_size=batch_size)
        if max_prompt_tokens < self._max_document_tokens:
            raise ValueError(f"max_prompt_tokens must be at least max_document_tokens; got {max_prompt_tokens}")
        self._batch_size = batch_size
        self._max_prompt_tokens = max_prompt_tokens
        self._both_orders = both_orders

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`. Documents that are asked about together can see each other."""
        return [*super().decides(), self._batch_size, self._max_prompt_tokens, self._both_orders]

    def _orders(self, places: Sequence[int]) -> list[Sequence[int]]:
        return [places, places[::-1]] if self._both_orders else [places]

    def _batches(self, documents: Sequence[Shown], places: Sequence[int]) -> list[list[int]]:
        """Divide documents among questions. Those with images go by themselves: who cannot see them grades the rest."""
        batches: list[list[int]] = []
        left = 0
        for place in sorted(places, key=lambda at: bool(documents[at].images)):
            shown = documents[place]
            tokens = count_tokens(shown.fenced(self._max_document_tokens))
            tokens += sum(map(image_tokens, shown.images.values()))
            apart = batches and bool(documents[batches[-1][-1]].images) != bool(shown.images)
            if not left or apart or tokens > left or len(batches[-1]) == self._batch_size:
                batches.append([])
                left = self._max_prompt_tokens
            batches[-1].append(place)
            left -= tokens
        return batches

    def _variables(self, documents: Sequence[Shown]) -> Mapping[str, Any]:
        fenced = (
            shown.fenced(self._max_document_tokens, f"document-{number}") for number, shown in enumerate(documents, 1)
        )
        return {"documents": "\n\n".join(fenced), "count": str(len(documents))}

    def _messages(self, query: Shown, documents: Sequence[Shown]) -> list[ChatMessage]:
        """Ask for JSON behind the prompt, whoever wrote it."""
        messages = super()._messages(query, documents)
        form, blocks = LISTWISE_FORM.replace("{count}", str(len(documents))), messages[-1].blocks
        if isinstance(last := blocks[-1], TextBlock):
            last.text = f"{last.text}\n\n{form}"
        else:
            blocks.append(TextBlock(text=form))
        return messages

    def _read(self, answer: Answer, count: int) -> list[float | None]:
        return grades_of(verdicts_in(found(answer), count), count)
