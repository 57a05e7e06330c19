"""All nodes in one question."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle
from pydantic import BaseModel, Field
from typing_extensions import Unpack

from llama_index_refine.graders.account import Account, current_account
from llama_index_refine.graders.asking.answer import found
from llama_index_refine.graders.asking.blocking import run_blocking
from llama_index_refine.graders.asking.calls import Call, CallOptions, Calls, Unreadable
from llama_index_refine.graders.asking.failures import Failure
from llama_index_refine.graders.asking.options import Options
from llama_index_refine.graders.asking.prompts import LISTWISE, LISTWISE_FORM, instruction_line
from llama_index_refine.graders.asking.showing import MAX_IMAGE_PIXELS, Shown, Sight, Written, tokens_of, with_images
from llama_index_refine.graders.asking.text import count_tokens
from llama_index_refine.graders.asking.verdicts import HIGHEST, grades_of, verdicts_in
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.chat import LLAMA_INDEX_ADDS, LlamaIndexChat, NoModelError
from llama_index_refine.graders.combining import mean

_PROMPT_KEY = "grade_prompt"
_TOKENS_PER_VERDICT = 16


class Verdict(BaseModel):
    """How relevant one document is."""

    document: int = Field(description="the number of the document, from 1")
    relevance: float = Field(description=f"from 0 (about something else) to {HIGHEST} (exactly what is looked for)")


class Verdicts(BaseModel):
    """How relevant each of the documents is, one entry for each document."""

    verdicts: list[Verdict]


class ListwiseGrader(BaseGrader):
    """Asks an LLM about all nodes at once, or a few times within a token budget: the fewest calls of all LLM teachers.

    The answer is structured output (`structured_predict`) where the LLM calls functions, else JSON that is read
    leniently. Documents that the answer forgets get None, invented ones are dropped, repeated ones are averaged.
    Documents can see each other, so a hostile one can also talk down the others: where that matters, grade one by one.

    :param llm: any LlamaIndex LLM; None is `Settings.llm`, looked up when it is needed.
    :param instruction: what the search is for, in a sentence; None for none.
    :param prompt: a prompt of your own with the variables query, documents, count and instruction.
    :param batch_size: the most nodes in one question, at least 1.
    :param max_prompt_tokens: the most tokens of documents in one question; more nodes go into another one.
    :param both_orders: ask again with the documents in reversed order and average, against the favour that LLMs do to
        what stands first. The spread then says how much the order mattered.
    :param max_document_tokens: longer documents are cut to this many tokens, at least 1.
    :param metadata_mode: which of a node's metadata the LLM sees before its text.
    :param llm_kwargs: arguments for each call of the LLM.
    :param max_image_pixels: larger images are scaled down to so many pixels.
    :param image_folders: images that are in files are read in these folders and below.
    :param calls: how its questions are asked: see `CallOptions`; 4 at a time unless you say more, and 60 s for each.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        instruction: str | None = None,
        prompt: PromptTemplate | None = None,
        batch_size: int = 20,
        max_prompt_tokens: int = 8000,
        both_orders: bool = False,
        max_document_tokens: int = 512,
        metadata_mode: MetadataMode = MetadataMode.LLM,
        llm_kwargs: Mapping[str, Any] | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        image_folders: Sequence[str | Path] = (),
        **calls: Unpack[CallOptions],
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_document_tokens", max_document_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if max_prompt_tokens < max_document_tokens:
            raise ValueError(f"max_prompt_tokens must be at least max_document_tokens; got {max_prompt_tokens}")
        self._chat = LlamaIndexChat(llm)
        self.instruction = instruction
        self._prompt: BasePromptTemplate = _checked(prompt or LISTWISE)
        self._batch_size = batch_size
        self._max_prompt_tokens = max_prompt_tokens
        self._both_orders = both_orders
        self._max_document_tokens = max_document_tokens
        self._metadata_mode = metadata_mode
        self._options = Options({}, llm_kwargs, LLAMA_INDEX_ADDS)
        self._calls = Calls(**(CallOptions(concurrency=4, timeout=60.0) | calls))
        self._structured: bool | None = None
        self._sight = Sight(max_image_pixels, image_folders)

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`."""
        return run_blocking(self._grade(query, nodes, blocking=True))

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.agrade`."""
        return await self._grade(query, nodes, blocking=False)

    @property
    def image_folders(self) -> Sequence[Path]:
        """See `BaseGrader.image_folders`."""
        return self._sight.reader.image_folders

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`."""
        settings = (
            self.instruction,
            self._batch_size,
            self._max_prompt_tokens,
            self._both_orders,
            self._options.required,
            self._max_document_tokens,
            self._sight.reader.max_image_pixels,
        )
        return f"{super().fingerprint()} {self._chat.fingerprint()} {settings}"

    def _get_prompts(self) -> PromptDictType:
        return {_PROMPT_KEY: self._prompt}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if _PROMPT_KEY in prompts:
            self._prompt = _checked(prompts[_PROMPT_KEY])

    async def _grade(self, query: QueryBundle, nodes: Sequence[BaseNode], blocking: bool) -> Grades:
        account = current_account()
        if not nodes:
            return Grades()
        try:
            self._chat.check()
        except NoModelError as error:
            self._calls.fail(str(error), account)
            return Grades([None] * len(nodes))
        asked, documents = await self._sight.look(query, nodes, self._metadata_mode, self._max_document_tokens)
        model, takes_images = self._chat.fingerprint(), self._chat.takes_images()
        tell = partial(self._calls.tell, account=account)
        order = self._sight.open_places(model, takes_images, asked, documents, tell)
        orders = [order, order[::-1]] if self._both_orders else [order]
        passes = (self._pass(asked, documents, one, account, blocking) for one in orders)
        return mean(await asyncio.gather(*passes))

    async def _pass(
        self, query: Shown, documents: Sequence[Shown], order: Sequence[int], account: Account, blocking: bool
    ) -> Grades:
        batches = self._batches(documents, order)
        questions = [
            _Question(self, query, [documents[place] for place in batch], account, blocking) for batch in batches
        ]
        calls = [Call(question.ask, question.tokens, question.adapt, question.needless) for question in questions]
        grades: list[float | None] = [None] * len(documents)
        for batch, answer in zip(batches, await self._calls.gather(calls, account), strict=True):
            for place, grade in zip(batch, answer or [None] * len(batch), strict=True):
                grades[place] = grade
        return Grades(grades)

    def _batches(self, documents: Sequence[Shown], order: Sequence[int]) -> list[list[int]]:
        """Divide documents among questions. Those with images go by themselves: who cannot see them grades the rest."""
        batches: list[list[int]] = []
        for pictured in (False, True):
            left = 0
            for place in order:
                shown = documents[place]
                if bool(shown.images) != pictured:
                    continue
                tokens = count_tokens(shown.fenced(self._max_document_tokens)) + shown.image_tokens
                if not left or tokens > left or len(batches[-1]) == self._batch_size:
                    batches.append([])
                    left = self._max_prompt_tokens
                batches[-1].append(place)
                left -= tokens
        return batches


class _Question:
    """One question about several documents: structured output first, then plain text."""

    def __init__(
        self, grader: ListwiseGrader, query: Shown, documents: Sequence[Shown], account: Account, blocking: bool
    ) -> None:
        self._grader = grader
        self._shown = [query, *documents]
        self._count = len(documents)
        self._images = {mark: image for shown in self._shown for mark, image in shown.images.items()}
        self._account = account
        self._blocking = blocking
        self._attempt = grader._options.attempt(grader._chat.fingerprint())
        self._plain = grader._structured is False or not grader._chat.llm.metadata.is_function_calling_model
        self._variables = {
            "query": query.in_line(),
            "count": str(len(documents)),
            "instruction": instruction_line(grader.instruction),
            "documents": "\n\n".join(
                shown.fenced(grader._max_document_tokens, f"document-{number}")
                for number, shown in enumerate(documents, 1)
            ),
        }

    async def ask(self) -> list[float | None]:
        with self._grader._sight.watched(self._attempt.model, self._images):
            verdicts = await (self._ask_plainly() if self._plain else self._ask_structured())
        grades = grades_of(verdicts, self._count)
        if all(grade is None for grade in grades):
            raise Unreadable("an answer graded none of the documents")
        self._grader._options.worked(self._attempt)
        if not self._plain:
            self._grader._structured = True
        elif self._grader._structured is None:
            self._grader._structured = False
        return grades

    def tokens(self) -> int:
        return self._prompt_tokens() + _TOKENS_PER_VERDICT * self._count

    def needless(self) -> str | None:
        return self._grader._sight.why_not(self._attempt.model, True, *self._shown)

    def adapt(self, error: Exception, failure: Failure | None) -> bool:
        """Give up what the model refuses, and structured output where it failed."""
        if failure is not None and failure.options and self._grader._options.adapt(self._attempt, failure):
            return True
        if self._plain:
            return False
        self._plain = True
        return True

    async def _ask_structured(self) -> list[tuple[float, float]]:
        grader = self._grader
        prompt, variables = grader._prompt, self._variables
        if self._images:
            prompt, variables = Written(self._messages()), {}
        form = await grader._chat.predict(Verdicts, prompt, variables, self._attempt.options, blocking=self._blocking)
        # structured_predict keeps the server's own count to itself.
        self._account.charge(self._prompt_tokens(), count_tokens(form.model_dump_json()))
        return [(verdict.document, verdict.relevance) for verdict in form.verdicts]

    async def _ask_plainly(self) -> list[tuple[float, float]]:
        grader = self._grader
        *before, last = self._messages()
        form = LISTWISE_FORM.replace("{count}", str(self._count))
        *blocks, end = last.blocks or [TextBlock(text="")]
        blocks += [TextBlock(text=f"{end.text}{form}")] if isinstance(end, TextBlock) else [end, TextBlock(text=form)]
        asked = [*before, ChatMessage(role=last.role, blocks=blocks)]
        answer = await grader._chat.ask(asked, self._attempt.options, self._blocking)
        self._account.charge(answer.prompt_tokens, answer.completion_tokens)
        return verdicts_in(found(answer)[0], self._count)

    def _messages(self) -> list[ChatMessage]:
        return with_images(self._grader._prompt.format_messages(llm=None, **self._variables), self._images)

    def _prompt_tokens(self) -> int:
        return tokens_of(self._messages())


def _checked(prompt: BasePromptTemplate) -> BasePromptTemplate:
    missing = {"query", "documents"} - set(prompt.template_vars)
    if missing:
        raise ValueError(f"prompt must contain {' and '.join(f'{{{name}}}' for name in sorted(missing))}")
    return prompt
