"""How relevant, on a scale with a rubric."""

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
from llama_index_refine.graders.asking.prompts import SCALE
from llama_index_refine.graders.asking.showing import MAX_IMAGE_PIXELS, Sight
from llama_index_refine.graders.chat import LlamaIndexChat
from llama_index_refine.graders.pointwise import PointwiseGrader, yes_no_options
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
    :param instruction: see `LLMGrader`, as for all that follow.
    :param prompt: a prompt of your own with the variables query, document, instruction, rubric and highest.
    :param max_document_tokens: longer documents are cut to this many tokens.
    :param metadata_mode: which of a node's metadata the LLM sees before its text.
    :param llm_kwargs: arguments for each call of the LLM.
    :param max_image_pixels: larger images are scaled down to so many pixels.
    :param image_folders: images that are in files are read in these folders and below.
    :param calls: how its questions are asked: see `CallOptions`.
    :raises ValueError: an argument out of its range.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        rubric: Sequence[str] = RUBRIC,
        instruction: str | None = None,
        prompt: BasePromptTemplate | None = None,
        max_document_tokens: int = 512,
        metadata_mode: MetadataMode = MetadataMode.LLM,
        llm_kwargs: Mapping[str, Any] | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        image_folders: Sequence[str | Path] = (),
        **calls: Unpack[CallOptions],
    ) -> None:
        if isinstance(rubric, str) or not 2 <= len(rubric) <= 10:
            raise ValueError("rubric must be 2 to 10 texts, one a level, the least relevant first")
        super().__init__(
            chat=LlamaIndexChat(llm),
            prompt=prompt or SCALE,
            instruction=instruction,
            max_document_tokens=max_document_tokens,
            metadata_mode=metadata_mode,
            calls=Calls(**calls),
            options=yes_no_options(llm_kwargs),
            sight=Sight(max_image_pixels, image_folders),
        )
        self._rubric = tuple(rubric)

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`."""
        return f"{super().fingerprint()} {self._rubric}"

    def _read(self, answer: Answer) -> float | None:
        highest = len(self._rubric) - 1
        value = number(answer, highest)
        return None if value is None else value / highest

    def _variables(self) -> Mapping[str, Any]:
        levels = "\n".join(f"{level}: {meaning}" for level, meaning in enumerate(self._rubric))
        return {"rubric": levels, "highest": len(self._rubric) - 1}
