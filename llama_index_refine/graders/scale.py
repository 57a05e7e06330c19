"""How relevant, on a scale with a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import Unpack

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.asking.grader import AskingOptions
from llama_index_refine.graders.asking.prompts import SCALE
from llama_index_refine.graders.asking.showing import Shown
from llama_index_refine.graders.chat import LlamaIndexChat
from llama_index_refine.graders.pointwise import PointwiseGrader
from llama_index_refine.graders.reading import number

# The four levels that TREC judges use for passages.
RUBRIC = (
    "it has nothing to do with the query",
    "it is related to the query but does not answer it",
    "it has some answer to the query, but unclear or hidden among other things",
    "it is dedicated to the query and has the exact answer",
)


class ScaleGrader(PointwiseGrader):
    """Asks an LLM for a number from 0 to N about each node by itself. The grade is the number divided by N.

    With log-probabilities it is the expected number over the digits, else the number in the text. The levels of the
    rubric are the scale: four levels are 0 to 3.

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
