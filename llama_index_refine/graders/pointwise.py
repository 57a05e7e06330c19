"""A teacher that asks a chat model one short question for each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import Unpack

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.asking.grader import AskingGrader, AskingOptions
from llama_index_refine.graders.asking.prompts import form_of
from llama_index_refine.graders.asking.showing import Shown
from llama_index_refine.graders.chat import Chat
from llama_index_refine.graders.reading import yes_or_no

_ANSWER_TOKENS = 16
_OPTIONAL = {"logprobs": True, "top_logprobs": 20, "max_tokens": _ANSWER_TOKENS}


class PointwiseGrader(AskingGrader):
    """One question a node; a subclass brings the question, and reads the answer unless it is a yes or a no.

    :param chat: the chat model to ask.
    :param prompt: the question, with the variables query, document and instruction. The document comes fenced.
    :param instruction: what the search is for, in a sentence; None for none.
    :param choices: the words or numbers to answer with. An answer that cannot be read is asked for once more, in JSON
        that allows nothing else: {"answer": ...}.
    :param optional: arguments of the call that may be given up where the model refuses them, beside log-probabilities
        and a limit of 16 tokens.
    :param asking: see `AskingOptions`.
    :raises ValueError: an argument out of its range, or a prompt without query or document.
    """

    def __init__(
        self,
        chat: Chat,
        prompt: BasePromptTemplate,
        instruction: str | None = None,
        choices: Sequence[str | int] = (),
        optional: Mapping[str, Any] | None = None,
        **asking: Unpack[AskingOptions],
    ) -> None:
        form = form_of("Answer", {"answer": {"enum": [*choices]}}) if choices else None
        super().__init__(chat, prompt, instruction, {**_OPTIONAL, **(optional or {})}, form, **asking)

    def read(self, answer: Answer) -> float | None:
        """Read the grade from an answer: of a yes or a no, unless a subclass says otherwise.

        :param answer: what the model said.
        :return: the grade in [0, 1], None where there is none in it.
        """
        return yes_or_no(answer)

    def _read(self, answer: Answer, count: int) -> list[float | None]:
        grade = self.read(answer)
        return [None if grade is None else min(1.0, max(0.0, grade))]

    def _variables(self, documents: Sequence[Shown]) -> dict[str, Any]:
        return {"document": documents[0].fenced(self._max_document_tokens)}
