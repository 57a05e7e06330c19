"""A teacher that asks a chat model one short question for each node."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import BaseNode, MetadataMode, QueryBundle

from llama_index_refine.graders.account import Account, current_account
from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.asking.blocking import run_blocking
from llama_index_refine.graders.asking.calls import Call, Calls, CutShort, NoText, Unreadable
from llama_index_refine.graders.asking.failures import Failure
from llama_index_refine.graders.asking.options import Attempt, Options
from llama_index_refine.graders.asking.prompts import instruction_line
from llama_index_refine.graders.asking.showing import Shown, Sight, tokens_of, with_images
from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.chat import LLAMA_INDEX_ADDS, Chat, NoModelError

_ANSWER_TOKENS = 16
_PROMPT_KEY = "grade_prompt"


class PointwiseGrader(BaseGrader):
    """One question a node, asked concurrently; a subclass brings the question and reads the answer.

    :param chat: the chat model to ask.
    :param prompt: the question, with the variables query, document and instruction.
    :param instruction: what the search is for, in a sentence; None for none.
    :param max_document_tokens: longer documents are cut to this, at least 1.
    :param metadata_mode: which of a node's metadata stands before its text.
    :param calls: the gate all calls go through.
    :param options: what is asked of the chat model beside the answer.
    :param sight: which images may be looked at.
    :raises ValueError: max_document_tokens below 1, or a prompt without query or document.
    """

    def __init__(
        self,
        chat: Chat,
        prompt: BasePromptTemplate,
        instruction: str | None,
        max_document_tokens: int,
        metadata_mode: MetadataMode,
        calls: Calls,
        options: Options,
        sight: Sight,
    ) -> None:
        if max_document_tokens < 1:
            raise ValueError(f"max_document_tokens must be at least 1; got {max_document_tokens}")
        self._chat = chat
        self._prompt = checked_prompt(prompt)
        self.instruction = instruction
        self._max_document_tokens = max_document_tokens
        self._metadata_mode = metadata_mode
        self._calls = calls
        self._options = options
        self._sight = sight

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`. Works inside a running event loop too, as in a notebook."""
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
        limits = (self._max_document_tokens, self._metadata_mode.value, self._sight.reader.max_image_pixels)
        settings = (self._chat.fingerprint(), self.instruction, *limits)
        return f"{super().fingerprint()} {settings} {self._options.required}"

    def _attempt(self) -> Attempt:
        return self._options.attempt(self._chat.fingerprint(), self._chat.completion_options())

    @abstractmethod
    def _read(self, answer: Answer) -> float | None:
        """Read the grade from an answer, None where there is none in it."""

    def _variables(self) -> Mapping[str, Any]:
        """More variables of the prompt, beside query, document and instruction."""
        return {}

    async def _grade(self, query: QueryBundle, nodes: Sequence[BaseNode], blocking: bool) -> Grades:
        account = current_account()
        try:
            self._chat.check()
        except NoModelError as error:
            self._calls.fail(str(error), account)
            return Grades([None] * len(nodes))
        asked, documents = await self._sight.look(query, nodes, self._metadata_mode, self._max_document_tokens)
        model, takes_images = self._chat.fingerprint(), self._chat.takes_images()
        tell = partial(self._calls.tell, account=account)
        open_places = self._sight.open_places(model, takes_images, asked, documents, tell)
        questions = [_Question(self, asked, documents[at], account, blocking) for at in open_places]
        calls = [Call(question.ask, question.tokens, question.adapt, question.needless) for question in questions]
        given = dict(zip(open_places, await self._calls.gather(calls, account), strict=True))
        return Grades(given.get(at) for at in range(len(nodes)))

    def _get_prompts(self) -> PromptDictType:
        return {_PROMPT_KEY: self._prompt}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if _PROMPT_KEY in prompts:
            self._prompt = checked_prompt(prompts[_PROMPT_KEY])


class _Question:
    """One node's question, in whatever way it has to be asked."""

    def __init__(
        self, grader: PointwiseGrader, query: Shown, document: Shown, account: Account, blocking: bool
    ) -> None:
        self._grader = grader
        self._query = query
        self._document = document
        self._images = {**query.images, **document.images}
        self._account = account
        self._blocking = blocking
        self._attempt = grader._attempt()

    def _messages(self) -> list[ChatMessage]:
        grader = self._grader
        messages = grader._prompt.format_messages(
            query=self._query.in_line(),
            document=self._document.fenced(grader._max_document_tokens),
            instruction=instruction_line(grader.instruction),
            **grader._variables(),
        )
        return with_images(messages, self._images)

    async def ask(self) -> float:
        grader = self._grader
        if not self._attempt.tried:
            self._attempt = grader._attempt()
        with grader._sight.watched(self._attempt.model, self._images):
            answer = await grader._chat.ask(self._messages(), self._attempt.options, self._blocking)
        self._account.charge(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        grade = grader._read(answer)
        if grade is None:
            raise _unreadable(answer)
        grader._options.worked(self._attempt)
        return min(1.0, max(0.0, grade))

    def tokens(self) -> int:
        return tokens_of(self._messages()) + _ANSWER_TOKENS

    def needless(self) -> str | None:
        return self._grader._sight.why_not(self._attempt.model, True, self._query, self._document)

    def adapt(self, error: Exception, failure: Failure | None) -> bool:
        options = self._grader._options
        if failure is not None:
            return options.adapt(self._attempt, failure)
        eaten = isinstance(error, CutShort) or (isinstance(error, NoText) and not options.proven(self._attempt))
        return eaten and options.lift(self._attempt)


def _unreadable(answer: Answer) -> Unreadable:
    if answer.filtered:
        return Unreadable("the LLM server's content filter refused a document")
    if answer.cut_short:
        return CutShort("an answer was cut short by max_tokens before it said anything")
    if not answer.text.strip():
        return NoText("an answer was empty")
    return Unreadable("an answer was not one of those asked for (a refusal, or idle talk)")


def checked_prompt(prompt: BasePromptTemplate) -> BasePromptTemplate:
    """Return a prompt as it is. :raises ValueError: it has no place for the query or the document."""
    missing = {"query", "document"} - set(prompt.template_vars)
    if missing:
        raise ValueError(f"prompt must contain {' and '.join(f'{{{name}}}' for name in sorted(missing))}")
    return prompt


def yes_no_options(llm_kwargs: Mapping[str, Any] | None, **more: Any) -> Options:
    """What a question with a one-word answer asks of a chat model: log-probabilities, and few tokens."""
    wanted = {"logprobs": True, "top_logprobs": 20, "max_tokens": _ANSWER_TOKENS, **more}
    return Options(wanted, llm_kwargs, LLAMA_INDEX_ADDS if "temperature" not in more else None)
