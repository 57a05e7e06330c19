"""One small index, its refined retriever, and language models that answer from a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM

from llama_index_refine import RefinedRetriever
from tests.small_index import SubjectGrader, make_index


class ScriptedLLM(CustomLLM):
    """Says the next line of its script, the last one for ever, and keeps the prompts it was given."""

    script: list[str]
    prompts: list[str]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=8192)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        return CompletionResponse(text=self.script.pop(0) if len(self.script) > 1 else self.script[0])

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        text = self.complete(prompt, True).text
        return (CompletionResponse(text=text[:end], delta=text[end - 1]) for end in range(1, len(text) + 1))


@pytest.fixture
def llm() -> Callable[..., ScriptedLLM]:
    return lambda *script: ScriptedLLM(script=list(script), prompts=[])


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    return make_index()


@pytest.fixture
def retriever(index: VectorStoreIndex) -> RefinedRetriever:
    """Returns four nodes; the teacher means owls, of which the first search has one."""
    grader = SubjectGrader("owls")
    return RefinedRetriever.from_index(index, grader=grader, similarity_top_k=4, trust=1.0, early_stop=False)


def subjects(nodes: Sequence[Any]) -> list[str]:
    return [entry.node.metadata["subject"] for entry in nodes]
