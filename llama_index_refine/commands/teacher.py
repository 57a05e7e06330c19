"""The LLM that the options name."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from llama_index_refine.graders.base import BaseGrader

DEFAULT_MODEL = "gpt-4.1-mini"
"""Asked where there is a key for OpenAI and no model is named: cheap, quick, and gives log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class LLMOptions:
    """The options of all commands that ask an LLM."""

    llm_base_url: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible server (vLLM, Ollama, ...). Its address ends in /v1; its key, if any, is "
            "OPENAI_API_KEY.",
            show_default="OPENAI_BASE_URL, or OpenAI",
        ),
    ] = None
    llm_model: Annotated[
        str | None, typer.Option(help="The model to ask on that server.", show_default=DEFAULT_MODEL)
    ] = None
    llm_kwargs: Annotated[
        str | None,
        typer.Option(
            help='Arguments for each LLM call, as a JSON object: \'{"reasoning_effort": "low"}\'.',
            show_default=False,
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether the command line names an LLM, and not the environment alone."""
        return any(one is not None for one in (self.llm_base_url, self.llm_model, self.llm_kwargs))

    def model(self) -> str | None:
        """Say which model the options and the environment name.

        :return: the model, `DEFAULT_MODEL` where only OpenAI is named, None where nothing names one.
        :raises ValueError: a server without a model, or a model without server and key.
        """
        if self.llm_base_url is not None and not self.llm_model:
            raise ValueError("--llm-base-url needs --llm-model, the model to ask for there")
        if not os.environ.get("OPENAI_API_KEY") and (server_url(self.llm_base_url) is None or not self.llm_model):
            if self.llm_model:
                raise ValueError(f"there is no key to ask {self.llm_model} with: {no_llm()}")
            return None
        return self.llm_model or DEFAULT_MODEL

    def kwargs(self) -> dict[str, Any]:
        """Read the arguments of each call.

        :return: the arguments.
        :raises ValueError: they are no JSON object.
        """
        example = "write it as in '{\"top_p\": 0.9}'"
        try:
            found = json.loads(self.llm_kwargs or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"--llm-kwargs is not JSON ({error}); {example}") from error
        if not isinstance(found, dict):
            raise ValueError(f"--llm-kwargs must be a JSON object, got {type(found).__name__}; {example}")
        return found

    def grader(
        self, instruction: str | None = None, on_error: Literal["ignore", "raise"] = "raise"
    ) -> BaseGrader | None:
        """Make the teacher that the options and the environment name.

        :param instruction: what the search is for, in a sentence.
        :param on_error: whether what the user has to mend raises, or leaves documents without a grade.
        :return: the teacher, None where nothing names one.
        :raises ValueError: a server without a model, a model without server and key, or arguments that are no JSON
            object.
        :raises ImportError: the client is missing.
        """
        chosen, options = self.model(), self.kwargs()
        if chosen is None:
            return None
        from llama_index_refine.graders.openai import OpenAIGrader

        # As the option's help says, the key is the named server's.
        url, key = server_url(self.llm_base_url), os.environ.get("OPENAI_API_KEY")
        return OpenAIGrader(chosen, url, key, instruction=instruction, llm_kwargs=options, on_error=on_error)

    def needed_grader(
        self, instruction: str | None = None, on_error: Literal["ignore", "raise"] = "raise"
    ) -> BaseGrader:
        """Make the teacher, or say what would name one.

        :param instruction: what the search is for, in a sentence.
        :param on_error: see `grader`.
        :return: the teacher.
        :raises ValueError: nothing names one.
        """
        grader = self.grader(instruction, on_error)
        if grader is None:
            raise ValueError(f"grading needs an LLM: {no_llm()}")
        return grader


def no_llm() -> str:
    """Say what would name an LLM."""
    if os.environ.get("OPENAI_BASE_URL"):
        return "set OPENAI_API_KEY, or give --llm-model, the model to ask for at OPENAI_BASE_URL"
    return "set OPENAI_API_KEY, or give --llm-base-url and --llm-model"


def server_url(base_url: str | None) -> str | None:
    """Say which server is asked: the option's, else that of OPENAI_BASE_URL; None for OpenAI's."""
    return base_url or os.environ.get("OPENAI_BASE_URL") or None
