"""The teacher for most uses: is this document relevant, yes or no, asked of any LlamaIndex LLM."""

from __future__ import annotations

from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from typing_extensions import Unpack

from llama_index_refine.graders.asking.grader import AskingOptions
from llama_index_refine.graders.asking.prompts import YES_NO
from llama_index_refine.graders.chat import LlamaIndexChat
from llama_index_refine.graders.pointwise import PointwiseGrader


class LLMGrader(PointwiseGrader):
    """Asks an LLM about each node by itself. The grade is p(yes) / (p(yes) + p(no)).

    Where the LLM gives no log-probabilities the answer's text decides, and the grade is 0 or 1. A node whose question
    fails gets None.

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
