"""The teacher's interface."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType, PromptMixin, PromptMixinType
from llama_index.core.schema import BaseNode, QueryBundle
from pydantic import BaseModel

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.loop import in_thread


class GraderError(RuntimeError):
    """A teacher is set up wrongly (credentials, model, request) and was told to say so with `on_error="raise"`."""


# Names of settings that hold a secret, and those that only sound like it.
_SECRET = ("key", "token", "secret", "password", "credential")
# Names that hold one of these words, and no secret.
_OPEN = ("max_tokens", "token_limit", "num_output_tokens", "max_new_tokens")
# Of an LLM, what decides its answers; the rest is how it is called.
_OF_LLMS = (
    *("model", "model_name", "model_id", "engine", "deployment_name", "api_base", "base_url", "azure_endpoint"),
    *("temperature", "max_tokens", "top_p", "top_k", "seed", "reasoning_effort", "system_prompt", "additional_kwargs"),
)
_DEPTH = 6

# What an average may leave the range by.
ROUNDING = 1e-6


def on_scale(grade: float) -> float | None:
    """Take a grade for what it is.

    :param grade: any number.
    :return: the grade, the end of the scale where only a rounding put it outside [0, 1]; None where it is no grade.
    """
    return min(max(float(grade), 0.0), 1.0) if -ROUNDING <= grade <= 1 + ROUNDING else None


def at_least(lowest: int, **values: float) -> None:
    """Check arguments, given by their names. :raises ValueError: one is below the lowest, or no number."""
    for name, value in values.items():
        if not value >= lowest:
            raise ValueError(f"{name} must be at least {lowest}; got {value}")


class Grades(list[float | None]):
    """A list of grades that may also say how sure the teacher was.

    :param values: one relevance in [0, 1] per node, None where this node got no grade.
    :param spread: one standard deviation of the grade in [0, 1] per node, None where it is not known; None for none.
    :raises ValueError: spread of another length than values.
    """

    def __init__(self, values: Iterable[float | None] = (), spread: Sequence[float | None] | None = None) -> None:
        super().__init__(values)
        self.spread: list[float | None] = [None] * len(self) if spread is None else list(spread)
        if len(self.spread) != len(self):
            raise ValueError(f"spread has {len(self.spread)} entries for {len(self)} grades")


async def in_time(
    asked: Awaitable[Sequence[float | None]], name: str, count: int, grace: float = 0.0
) -> Sequence[float | None]:
    """Wait for a teacher's grades, at most until the query's deadline.

    :param asked: the grades.
    :param name: the teacher's name.
    :param count: of how many nodes.
    :param grace: seconds that it may take longer, because it keeps the deadline itself.
    :return: what the teacher returned; None for all nodes where it was late.
    :raises Exception: whatever the teacher raises.
    """
    account = current_account()
    left = account.seconds_left()
    try:
        return await asyncio.wait_for(asked, None if left is None else left + grace)
    except asyncio.TimeoutError:
        if account.seconds_left() != 0:
            raise
        account.note(f"{name} had not answered by the deadline")
        return Grades([None] * count)


class BaseGrader(PromptMixin, ABC):
    """A teacher: says how relevant each node is to a query. Write `grade` and it is complete.

    A teacher that calls an LLM charges `current_account()` for its calls and tokens and stops when that says so.
    """

    trusted: bool = False
    """Whether its grades are followed in full from the first query; a subclass may say so.

    Other teachers are followed as far as their record shows that they know.
    """
    image_folders: Sequence[Path] = ()
    """The folders whose images it may read, and whoever shows what it was shown."""

    @abstractmethod
    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        """Grade the nodes.

        :param query: the query.
        :param nodes: the nodes to grade, with their text.
        :return: one relevance in [0, 1] per node, in their order, None where this node got no grade. Return `Grades`
            to say how sure each is.
        """

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        """Grade without blocking the event loop: `grade` in a thread of its own, given up at the query's deadline."""
        return await in_time(in_thread(self.grade, query, nodes), type(self).__name__, len(nodes))

    def fingerprint(self) -> str:
        """Say what decides this teacher's grades; two teachers with the same answer share cached grades.

        :return: the class, and a hash of its prompts and of what `decides` names.
        """
        return f"{type(self).__module__}.{type(self).__qualname__} {digest(self.get_prompts(), self.decides())}"

    def decides(self) -> Sequence[Any]:
        """Name what decides this teacher's grades beside its class and prompts.

        :return: settings, LLMs, other teachers' fingerprints; nothing, unless a subclass has some. They are hashed.
        """
        return ()

    def memory_fingerprint(self) -> str:
        """Say what decides the grades that a `RefinementMemory` keeps, where people's are kept apart.

        :return: the fingerprint, unless a subclass overrides it.
        """
        return self.fingerprint()

    def judged(self, query: QueryBundle) -> Sequence[str]:
        """Name nodes whose grade is known before they are shown, so that they are graded wherever they rank.

        :param query: the query.
        :return: their node ids; none unless a subclass overrides it.
        """
        return ()

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        pass


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
