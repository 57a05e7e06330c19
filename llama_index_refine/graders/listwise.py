"""All nodes in one question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import TextBlock
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import Unpack

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.answer import found
from llama_index_refine.graders.asking.grader import AskingGrader, AskingOptions
from llama_index_refine.graders.asking.prompts import LISTWISE, LISTWISE_FORM, form_of, object_of
from llama_index_refine.graders.asking.question import Question
from llama_index_refine.graders.asking.reply import Answer
from llama_index_refine.graders.asking.showing import Shown, image_tokens
from llama_index_refine.graders.asking.text import count_tokens
from llama_index_refine.graders.asking.verdicts import HIGHEST, grades_of, verdicts_in
from llama_index_refine.graders.chat import LlamaIndexChat

_DOCUMENT = {"type": "integer", "description": "the number of the document, from 1"}
_RELEVANCE = {"type": "number", "description": f"from 0 (about something else) to {HIGHEST} (what is sought)"}


class ListwiseGrader(AskingGrader):
    """Asks an LLM about all nodes at once, or a few times within a token budget: the fewest calls of all LLM teachers.

    The answer is JSON, by a schema (`response_format`) where the LLM takes one, and is read leniently. Documents that
    it forgets get None, invented ones are dropped, repeated ones are averaged. Documents can see each other, so a
    hostile one can also talk down the others: where that matters, grade one by one.

    :param llm: any LlamaIndex LLM; None is `Settings.llm`, looked up when it is needed.
    :param instruction: what the search is for, in a sentence; None for none.
    :param prompt: a prompt of your own with the variables query, documents, count and instruction.
    :param batch_size: the most nodes in one question, at least 1.
    :param max_prompt_tokens: the most tokens of documents in one question; more nodes go into another one.
    :param both_orders: ask again with the documents in reversed order and average, against the favour that LLMs do to
        what stands first. The spread then says how much the order mattered.
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
        verdict = object_of({"document": _DOCUMENT, "relevance": _RELEVANCE})
        form = form_of("Verdicts", {"verdicts": {"type": "array", "items": verdict}})
        patient: AskingOptions = {"concurrency": 4, "timeout": 60.0, **asking}
        super().__init__(LlamaIndexChat(llm), prompt or LISTWISE, instruction, form=form, form_first=True, **patient)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
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
        for pictured in (False, True):
            left = 0
            for place in places:
                shown = documents[place]
                if bool(shown.images) != pictured:
                    continue
                tokens = count_tokens(shown.fenced(self._max_document_tokens))
                tokens += sum(map(image_tokens, shown.images.values()))
                if not left or tokens > left or len(batches[-1]) == self._batch_size:
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

    def _question(self, query: Shown, documents: Sequence[Shown], account: Account) -> Question:
        """Ask for JSON behind the prompt, whoever wrote it."""
        question = super()._question(query, documents, account)
        question.messages[-1].blocks.append(TextBlock(text=LISTWISE_FORM.replace("{count}", str(len(documents)))))
        return question

    def _read(self, answer: Answer, count: int) -> list[float | None]:
        return grades_of(verdicts_in(found(answer), count), count)
