"""What decides a teacher's grades, as a text that tells teachers apart and holds no secret."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel

_SECRET = ("key", "token", "secret", "password", "credential")
# Names that hold one of these words, and no secret.
_OPEN = ("max_tokens", "token_limit", "num_output_tokens", "max_new_tokens")
# Of an LLM, what decides its answers; the rest is how it is called.
_OF_LLMS = (
    *("model", "model_name", "model_id", "engine", "deployment_name", "api_base", "base_url", "azure_endpoint"),
    *("temperature", "max_tokens", "top_p", "top_k", "seed", "reasoning_effort", "system_prompt", "additional_kwargs"),
)
_DEPTH = 6


def digest(*values: Any) -> str:
    """Tell values apart by a hash, which says nothing of what they hold."""
    return hashlib.sha256(_described(values).encode(errors="replace")).hexdigest()[:32]


def _described(value: Any, depth: int = 0) -> str:
    """Write what decides grades: numbers, texts and names, collections of them, LLMs, prompts, functions and models."""
    if value is None or isinstance(value, (str, int, float, Path, Enum)):
        return repr(value)
    if depth > _DEPTH:
        return type(value).__qualname__

    def each(values: Any) -> str:
        return f"[{', '.join(_described(one, depth + 1) for one in values)}]"

    if isinstance(value, Mapping):
        return each(sorted((str(name), _described(inner, depth + 1)) for name, inner in value.items()))
    if isinstance(value, (list, tuple)):
        return each(value)
    if isinstance(value, BasePromptTemplate):
        return each((value.get_template(), value.kwargs, value.function_mappings))
    if isinstance(value, (BaseLLM, BaseModel)):
        names = _OF_LLMS if isinstance(value, BaseLLM) else filter(_is_open, type(value).model_fields)
        return each((type(value).__qualname__, [(name, getattr(value, name, None)) for name in names]))
    if (code := getattr(value, "__code__", None)) is not None:
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return each((value.__qualname__, code.co_code.hex(), repr(code.co_consts), code.co_names, held))
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _is_open(name: str) -> bool:
    return name in _OPEN or not any(word in name.lower() for word in _SECRET)
