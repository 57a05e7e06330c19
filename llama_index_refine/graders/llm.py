"""One question a node, asked of any LlamaIndex LLM: is it relevant, yes or no; or how relevant it is, by a rubric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import Unpack

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.asking.grader import AskingGrader, AskingOptions
from llama_index_refine.graders.asking.prompts import SCALE, YES_NO, form_of
from llama_index_refine.graders.asking.showing import Shown
from llama_index_refine.graders.chat import Chat, LlamaIndexChat
from llama_index_refine.graders.reading import number, yes_or_no

# The four levels that TREC judges use for passages.
RUBRIC = (
    "it has nothing to do with the query",
    "it is related to the query but does not answer it",
    "it has some answer to the query, but unclear or hidden among other things",
    "it is dedicated to the query and has the exact answer",
)
_OPTIONAL = {"logprobs": True, "top_logprobs": 20, "max_tokens": 16}


class PointwiseGrader(AskingGrader):
    """One question a node; a subclass brings the question, and reads the answer unless it is a yes or a no.

    :param chat: the chat model to ask.
    :param prompt: the question, with the variables query, document and instruction. The document comes fenced.
    :param instruction: what the search is for, in a sentence; None for none.
    :param choices: the words or numbers to answer with. An answer that cannot be read is asked for once more, in JSON
        that allows nothing else: {"answer": ...}.
    :param optional: arguments of the call that are dropped if the model refuses them, besides log-probabilities and a
        limit of 16 tokens.
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
        return [self.read(answer)]

    def _variables(self, documents: Sequence[Shown]) -> dict[str, Any]:
        return {"document": documents[0].fenced(self._max_document_tokens)}


class LLMGrader(PointwiseGrader):
    """Asks an LLM about each node by itself. The grade is p(yes) / (p(yes) + p(no)).

    Without log-probabilities, the answer's text decides, and the grade is 0 or 1. A node whose question fails gets
    None.

    :param llm: any LlamaIndex LLM; None is `Settings.llm`, looked up when it is needed.
    :param instruction: what the search is for, in a sentence ("The queries are claims; relevant documents support or
        refute them."); None for none.
    :param prompt: a prompt of your own with the variables query, document and instruction. The document comes fenced.
    :param asking: how documents are shown, and how its questions are asked: see `AskingOptions`.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        **asking: Unpack[AskingOptions],
    ) -> None:
        super().__init__(LlamaIndexChat(llm), prompt or YES_NO, instruction, ("Yes", "No"), **asking)


class ScaleGrader(PointwiseGrader):
    """Asks an LLM for a number from 0 to N about each node by itself. The grade is the number divided by N.

    With log-probabilities, the number is the expected one over the digits; without them, the one in the text. The
    rubric's levels are the scale: four levels are 0 to 3.

    :param llm: any LlamaIndex LLM; None is `Settings.llm`, looked up when it is needed.
    :param rubric: what each number from 0 up means, 2 to 10 levels.
    :param instruction: what the search is for, in a sentence; None for none.
    :param prompt: a prompt of your own with the variables query, document, instruction, rubric and highest.
    :param asking: how documents are shown, and how its questions are asked: see `AskingOptions`.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        rubric: Sequence[str] = RUBRIC,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        **asking: Unpack[AskingOptions],
    ) -> None:
        if isinstance(rubric, str) or not 2 <= len(rubric) <= 10:
            raise ValueError("rubric must be 2 to 10 texts, one a level, the least relevant first")
        super().__init__(LlamaIndexChat(llm), prompt or SCALE, instruction, range(len(rubric)), **asking)
        self._rubric = tuple(rubric)

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`."""
        return [*super().decides(), self._rubric]

    def read(self, answer: Answer) -> float | None:
        """See `PointwiseGrader.read`."""
        highest = len(self._rubric) - 1
        value = number(answer, highest)
        return None if value is None else value / highest

    def _variables(self, documents: Sequence[Shown]) -> dict[str, Any]:
        levels = "\n".join(f"{level}: {meaning}" for level, meaning in enumerate(self._rubric))
        return {**super()._variables(documents), "rubric": levels, "highest": len(self._rubric) - 1}
