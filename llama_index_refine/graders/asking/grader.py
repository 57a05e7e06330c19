"""What every teacher that asks a chat model has in common."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle
from typing_extensions import Unpack

from llama_index_refine.graders.account import Account, current_account
from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.asking.calls import CallOptions, Calls
from llama_index_refine.graders.asking.loop import arun, run
from llama_index_refine.graders.asking.prompts import instruction_line
from llama_index_refine.graders.asking.question import Model, Question
from llama_index_refine.graders.asking.showing import MAX_IMAGE_PIXELS, Shown, Sight
from llama_index_refine.graders.base import BaseGrader, Grades, at_least
from llama_index_refine.graders.chat import Chat, NoModelError
from llama_index_refine.graders.combining import mean

_PROMPT_KEY = "grade_prompt"


class AskingOptions(CallOptions, total=False):
    """What teachers that ask an LLM have in common; keyword arguments of each of them.

    :param max_document_tokens: longer documents are cut to this many tokens of `Settings.tokenizer`, at least 1.
    :param metadata_mode: which of a node's metadata the LLM sees before its text.
    :param llm_kwargs: arguments for each call of the LLM, such as {"temperature": 0.0}.
    :param max_image_pixels: larger images are scaled down to this many pixels, at least 1.
    :param image_folders: the folders from which image files may be read, with their subfolders; others are not read.
    """

    max_document_tokens: int
    metadata_mode: MetadataMode
    llm_kwargs: Mapping[str, Any] | None
    max_image_pixels: int
    image_folders: Sequence[str | Path]


class AskingGrader(BaseGrader):
    """Asks a chat model questions about nodes; a subclass says which ones, and reads the answers.

    :param chat: the chat model to ask.
    :param prompt: the question, with the variables that `needs` names and instruction.
    :param instruction: what the search is for, in a sentence; None for none.
    :param optional: what is asked of the model beside the answer, as far as it takes it.
    :param form: the form of an answer, a `response_format`; None where there is none.
    :param form_first: whether to ask for the form at once, or only where an answer could not be read without it.
    :param asking: see `AskingOptions`.
    :raises ValueError: an argument out of its range, or a prompt without a variable.
    """

    needs: frozenset[str] = frozenset({"query", "document"})

    def __init__(
        self,
        chat: Chat,
        prompt: BasePromptTemplate,
        instruction: str | None = None,
        optional: Mapping[str, Any] | None = None,
        form: Mapping[str, Any] | None = None,
        form_first: bool = False,
        **asking: Unpack[AskingOptions],
    ) -> None:
        self._max_document_tokens = asking.pop("max_document_tokens", 512)
        self._metadata_mode = asking.pop("metadata_mode", MetadataMode.LLM)
        at_least(1, max_document_tokens=self._max_document_tokens)
        self._prompt = self._checked(prompt)
        self.instruction = instruction
        self._model = Model(chat, optional or {}, asking.pop("llm_kwargs", None), form, form_first)
        self._sight = Sight(asking.pop("max_image_pixels", MAX_IMAGE_PIXELS), asking.pop("image_folders", ()))
        self._calls = Calls(**cast(CallOptions, asking))

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`. Works inside a running event loop too, as in a notebook."""
        return run(self._grade(query, nodes))

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.agrade`."""
        return await arun(self._grade(query, nodes))

    @property
    def image_folders(self) -> Sequence[Path]:  # type: ignore[override]
        """See `BaseGrader.image_folders`."""
        return self._sight.image_folders

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`. How its questions are asked decides nothing."""
        shown = (self._max_document_tokens, self._metadata_mode.value, self._sight.max_image_pixels)
        return [self._model.chat.fingerprint(), self.instruction, shown, self._model.required]

    @abstractmethod
    def _read(self, answer: Answer, count: int) -> Sequence[float | None]:
        """Read the grades of so many documents from an answer, None where there is none in it."""

    def _variables(self, documents: Sequence[Shown]) -> Mapping[str, Any]:
        """Write documents for the prompt, beside query and instruction, where a subclass says how."""
        return {}

    def _batches(self, documents: Sequence[Shown], places: Sequence[int]) -> Sequence[Sequence[int]]:
        """Divide documents among questions; each has its own unless a subclass says otherwise."""
        return [[place] for place in places]

    def _orders(self, places: Sequence[int]) -> list[Sequence[int]]:
        """Say in which orders documents are asked about, of which the mean counts."""
        return [places]

    async def _grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        account = current_account()
        if not nodes:
            return Grades()
        try:
            self._model.chat.check()
        except NoModelError as error:
            self._calls.fail(str(error), account)
            return Grades([None] * len(nodes))
        asked, documents = await self._sight.look(query, nodes, self._metadata_mode, self._max_document_tokens)
        blind = self._model.known().sees is False or not self._model.chat.takes_images()
        reasons = [asked.why_not(blind) or shown.why_not(blind) for shown in documents]
        for reason in filter(None, reasons):
            self._calls.tell(reason, account)
        places = [at for at, one in enumerate(documents) if not reasons[at] and (one.text.strip() or one.images)]
        batches = (self._batches(documents, order) for order in self._orders(places))
        return mean(await asyncio.gather(*(self._ask(asked, documents, each, account) for each in batches)))

    async def _ask(
        self, query: Shown, documents: Sequence[Shown], batches: Sequence[Sequence[int]], account: Account
    ) -> Grades:
        asked = [[query, *(documents[place] for place in batch)] for batch in batches]
        questions = [
            Question(self._model, self._sight, account, shown, self._messages(query, shown[1:]), self._read)
            for shown in asked
        ]
        grades: list[float | None] = [None] * len(documents)
        for batch, answer in zip(batches, await self._calls.gather(questions, account), strict=True):
            for place, grade in zip(batch, answer or [None] * len(batch), strict=True):
                grades[place] = grade
        # One text that is refused takes no other's grade with it.
        spoilt = [batch for batch, question in zip(batches, questions, strict=True) if question.spoilt]
        apart = [[place] for batch in spoilt if len(batch) > 1 for place in batch]
        return mean([Grades(grades), await self._ask(query, documents, apart, account)]) if apart else Grades(grades)

    def _messages(self, query: Shown, documents: Sequence[Shown]) -> list[ChatMessage]:
        line = instruction_line(self.instruction)
        return self._prompt.format_messages(query=query.in_line(), instruction=line, **self._variables(documents))

    def _get_prompts(self) -> PromptDictType:
        return {_PROMPT_KEY: self._prompt}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if _PROMPT_KEY in prompts:
            self._prompt = self._checked(prompts[_PROMPT_KEY])

    def _checked(self, prompt: BasePromptTemplate) -> BasePromptTemplate:
        missing = self.needs - set(prompt.template_vars)
        if missing:
            raise ValueError(f"prompt must contain {' and '.join(f'{{{name}}}' for name in sorted(missing))}")
        return prompt
