"""The teacher for most uses: is this document relevant, yes or no, asked of any LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import MetadataMode
from typing_extensions import Unpack

from llama_index_refine.graders.asking.answer import Answer
from llama_index_refine.graders.asking.calls import CallOptions, Calls
from llama_index_refine.graders.asking.prompts import YES_NO
from llama_index_refine.graders.asking.showing import MAX_IMAGE_PIXELS, Sight
from llama_index_refine.graders.chat import LlamaIndexChat
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
    :param max_document_tokens: longer documents are cut to this many tokens of `Settings.tokenizer`.
    :param metadata_mode: which of a node's metadata the LLM sees before its text.
    :param llm_kwargs: arguments for each call of the LLM, such as {"temperature": 0.0}.
    :param max_image_pixels: larger images are scaled down to so many pixels.
    :param image_folders: images that are in files are read in these folders and below, and nowhere else.
    :param calls: how its questions are asked: see `CallOptions`.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        max_document_tokens: int = 512,
        metadata_mode: MetadataMode = MetadataMode.LLM,
        llm_kwargs: Mapping[str, Any] | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        image_folders: Sequence[str | Path] = (),
        **calls: Unpack[CallOptions],
    ) -> None:
        super().__init__(
            chat=LlamaIndexChat(llm),
            prompt=prompt or YES_NO,
            instruction=instruction,
            max_document_tokens=max_document_tokens,
            metadata_mode=metadata_mode,
            calls=Calls(**calls),
            options=yes_no_options(llm_kwargs),
            sight=Sight(max_image_pixels, image_folders),
        )

    def _read(self, answer: Answer) -> float | None:
        return yes_or_no(answer)
