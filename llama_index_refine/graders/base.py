"""The teacher's interface."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.prompts.mixin import PromptDictType, PromptMixin, PromptMixinType
from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.describing import digest


class GraderError(RuntimeError):
    """A teacher is set up wrongly (credentials, model, request) and was told to say so with `on_error="raise"`."""


# What an average may leave the range by.
ROUNDING = 1e-6


def on_scale(grade: float) -> float | None:
    """Take a grade for what it is.

    :param grade: any number.
    :return: the grade, the end of the scale where only a rounding put it outside [0, 1]; None where it is no grade.
    """
    return min(max(float(grade), 0.0), 1.0) if -ROUNDING <= grade <= 1 + ROUNDING else None


class Grades(list[float | None]):
    """A list of grades that may also say how sure the teacher was.

    :param values: one relevance in [0, 1] per node, None where this node got no grade.
    :param spread: one standard deviation of the grade in [0, 1] per node, None where it is not known.
    :raises ValueError: spread of another length than values.
    """

    def __init__(self, values: Iterable[float | None] = (), spread: Sequence[float | None] | None = None) -> None:
        super().__init__(values)
        if spread is not None and len(spread) != len(self):
            raise ValueError(f"spread has {len(spread)} entries for {len(self)} grades")
        self.spread = list(spread) if spread is not None else None


class BaseGrader(PromptMixin, ABC):
    """A teacher: says how relevant each node is to a query. Write `grade` and it is complete.

    A teacher that calls an LLM charges `current_account()` for its calls and tokens and stops when that says so.
    """

    @abstractmethod
    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        """Grade the nodes.

        :param query: the query.
        :param nodes: the nodes to grade, with their text.
        :return: one relevance in [0, 1] per node, in their order, None where this node got no grade. Return `Grades`
            to say how sure each is.
        """

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Sequence[float | None]:
        """Grade without blocking the event loop: `grade` in a worker thread, unless a subclass does better."""
        return await asyncio.to_thread(self.grade, query, nodes)

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

        :return: the fingerprint, unless a subclass knows better.
        """
        return self.fingerprint()

    @property
    def trusted(self) -> bool:
        """Whether its grades are followed in full from the first query; not, unless a subclass knows better.

        Other teachers are followed as far as their record shows that they know.
        """
        return False

    @property
    def image_folders(self) -> Sequence[Path]:
        """The folders whose images it may read, and whoever shows what it was shown; none, unless a subclass says."""
        return ()

    def judged(self, query: QueryBundle) -> Sequence[str]:
        """Name nodes whose grade is known before they are shown, so that they are graded wherever they rank.

        :param query: the query.
        :return: their node ids; none, unless a subclass knows better.
        """
        return ()

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        pass
