"""The LLM that the options name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llama_index_refine.graders.base import BaseGrader

DEFAULT_MODEL = "gpt-4.1-mini"
"""Asked where there is a key for OpenAI and no model is named: cheap, quick, and gives log-probabilities."""

LLMBaseUrl = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server (vLLM, Ollama, ...), up to and with /v1; its key is OPENAI_API_KEY.",
        show_default="OpenAI",
    ),
]
LLMModel = Annotated[str | None, typer.Option(help="The model to ask there.", show_default=DEFAULT_MODEL)]

NO_LLM = "set OPENAI_API_KEY, or give --llm-base-url and --llm-model"


def model_name(base_url: str | None, model: str | None) -> str | None:
    """Say which model the options and the environment name.

    :param base_url: a server, None for OpenAI's.
    :param model: a model, None for `DEFAULT_MODEL` at OpenAI.
    :return: the model, None where nothing names one.
    :raises ValueError: a server without a model, or a model without server and key.
    """
    if base_url is not None and not model:
        raise ValueError("--llm-base-url needs --llm-model, the model to ask for there")
    if base_url is None and not os.environ.get("OPENAI_API_KEY"):
        if model:
            raise ValueError(f"there is no key to ask {model} with: {NO_LLM}")
        return None
    return model or DEFAULT_MODEL


def make_grader(base_url: str | None, model: str | None, instruction: str | None = None) -> BaseGrader | None:
    """Make the teacher that the options and the environment name.

    :param base_url: a server, None for OpenAI's.
    :param model: a model, None for `DEFAULT_MODEL` at OpenAI.
    :param instruction: what the search is for, in a sentence.
    :return: the teacher, None where nothing names one.
    :raises ValueError: a server without a model, or a model without server and key.
    :raises ImportError: the client is missing.
    """
    chosen = model_name(base_url, model)
    if chosen is None:
        return None
    from llama_index_refine.graders.openai import OpenAIGrader

    return OpenAIGrader(chosen, base_url=base_url, instruction=instruction, on_error="raise")
