"""The LLM that the options name."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from llama_index_refine.graders.base import BaseGrader

DEFAULT_MODEL = "gpt-4.1-mini"
"""Asked where there is a key for OpenAI and no model is named: cheap, quick, and gives log-probabilities."""

LLMBaseUrl = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server (vLLM, Ollama, ...), up to and with /v1; its key, if any, is OPENAI_API_KEY.",
        show_default="OPENAI_BASE_URL, or OpenAI",
    ),
]
LLMModel = Annotated[str | None, typer.Option(help="The model to ask there.", show_default=DEFAULT_MODEL)]

LLMKwargs = Annotated[
    str | None,
    typer.Option(
        help='Arguments of each call of the LLM, as a JSON object: \'{"reasoning_effort": "low"}\'.', show_default=False
    ),
]


def no_llm() -> str:
    """Say what would name an LLM."""
    if os.environ.get("OPENAI_BASE_URL"):
        return "set OPENAI_API_KEY, or give --llm-model, the model to ask for at OPENAI_BASE_URL"
    return "set OPENAI_API_KEY, or give --llm-base-url and --llm-model"


def server_url(base_url: str | None) -> str | None:
    """Say which server is asked: the option's, else that of OPENAI_BASE_URL; None for OpenAI's."""
    return base_url or os.environ.get("OPENAI_BASE_URL") or None


def read_kwargs(llm_kwargs: str | None) -> dict[str, Any]:
    """Read --llm-kwargs.

    :param llm_kwargs: a JSON object, None for none.
    :return: the arguments.
    :raises ValueError: something else.
    """
    if llm_kwargs is None:
        return {}
    try:
        found = json.loads(llm_kwargs)
    except json.JSONDecodeError as error:
        raise ValueError(f"--llm-kwargs is not JSON ({error}); write it as in '{{\"top_p\": 0.9}}'") from error
    if not isinstance(found, dict):
        raise ValueError(f"--llm-kwargs must be a JSON object, as in '{{\"top_p\": 0.9}}'; got {type(found).__name__}")
    return found


def model_name(base_url: str | None, model: str | None) -> str | None:
    """Say which model the options and the environment name.

    :param base_url: a server, None for OpenAI's.
    :param model: a model, None for `DEFAULT_MODEL` at OpenAI.
    :return: the model, None where nothing names one.
    :raises ValueError: a server without a model, or a model without server and key.
    """
    if base_url is not None and not model:
        raise ValueError("--llm-base-url needs --llm-model, the model to ask for there")
    if not os.environ.get("OPENAI_API_KEY") and (server_url(base_url) is None or not model):
        if model:
            raise ValueError(f"there is no key to ask {model} with: {no_llm()}")
        return None
    return model or DEFAULT_MODEL


def make_grader(
    base_url: str | None, model: str | None, instruction: str | None = None, llm_kwargs: str | None = None
) -> BaseGrader | None:
    """Make the teacher that the options and the environment name.

    :param base_url: a server, None for OpenAI's.
    :param model: a model, None for `DEFAULT_MODEL` at OpenAI.
    :param instruction: what the search is for, in a sentence.
    :param llm_kwargs: arguments of each call, a JSON object.
    :return: the teacher, None where nothing names one.
    :raises ValueError: a server without a model, a model without server and key, or arguments that are no JSON object.
    :raises ImportError: the client is missing.
    """
    chosen, options = model_name(base_url, model), read_kwargs(llm_kwargs)
    if chosen is None:
        return None
    from llama_index_refine.graders.openai import OpenAIGrader

    # As the option's help says, the key is the named server's.
    url, key = server_url(base_url), os.environ.get("OPENAI_API_KEY")
    return OpenAIGrader(chosen, url, key, instruction=instruction, llm_kwargs=options, on_error="raise")
