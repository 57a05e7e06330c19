"""The teacher for most uses: is this document relevant, yes or no, asked of any LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import MetadataMode

from llama_index_refine.graders.asking.calls import Calls, OnError
from llama_index_refine.graders.asking.prompts import YES_NO
from llama_index_refine.graders.chat import Answer, LlamaIndexChat
from llama_index_refine.graders.pointwise import PointwiseGrader, yes_no_options
from llama_index_refine.graders.reading import yes_or_no


class LLMGrader(PointwiseGrader):
    """Asks an LLM about each node by itself. The grade is p(yes) / (p(yes) + p(no)).

    Where the LLM gives no log-probabilities the answer's text decides, and the grade is 0 or 1. A node whose question
    fails gets None.

    :param llm: any LlamaIndex LLM; None is `Settings.llm`, looked up when it is needed.
    :param instruction: what the search is for, in a sentence ("The queries are claims; relevant documents support or
        refute them."); None for none.
    :param prompt: a prompt of your own with the variables query, document and instruction. The document comes fenced.
    :param concurrency: questions out at the same time, over all queries that share this grader.
    :param max_document_tokens: longer documents are cut to this many tokens of `Settings.tokenizer`.
    :param metadata_mode: which of a node's metadata the LLM sees before its text.
    :param llm_kwargs: arguments for each call of the LLM, such as {"temperature": 0.0}.
    :param timeout: seconds one question may take.
    :param retries: how often a rate limit, a server error, a timeout or a broken connection is tried again.
    :param cooldown: seconds the LLM is left alone after five questions in a row have failed.
    :param on_error: "ignore" logs each kind of failure once; "raise" raises `GraderError` where the credentials, the
        model or the request are wrong.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        concurrency: int = 16,
        max_document_tokens: int = 512,
        metadata_mode: MetadataMode = MetadataMode.LLM,
        llm_kwargs: Mapping[str, Any] | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        cooldown: float = 30.0,
        on_error: OnError = "ignore",
    ) -> None:
        super().__init__(
            chat=LlamaIndexChat(llm),
            prompt=prompt or YES_NO,
            instruction=instruction,
            max_document_tokens=max_document_tokens,
            metadata_mode=metadata_mode,
            calls=Calls(concurrency, timeout, retries, cooldown, on_error),
            options=yes_no_options(llm_kwargs),
        )

    def _read(self, answer: Answer) -> float | None:
        return yes_or_no(answer)
