"""Several teachers as one: their average, the cheap one first, or the same one several times."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence

from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.combining import CombiningGrader, ask, complete, mean


class AverageGrader(CombiningGrader):
    """Asks all teachers at the same time. The grade is the mean of those who answered, the spread how far they differ.

    :param teachers: at least one.
    :param weights: one positive weight per teacher; None for equal ones.
    :raises ValueError: no teachers, or weights that do not fit them.
    """

    def __init__(self, teachers: Sequence[BaseGrader], weights: Sequence[float] | None = None) -> None:
        super().__init__(_numbered(teachers), weights)
        if weights is not None and (len(weights) != len(teachers) or not all(weight > 0 for weight in weights)):
            raise ValueError(f"weights must be {len(teachers)} numbers above 0, one per teacher; got {list(weights)}")
        self._weights = weights

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        asked = (ask(teacher, query, nodes) for teacher in self._teachers.values())
        return mean(await asyncio.gather(*asked), self._weights)


class CascadeGrader(CombiningGrader):
    """Asks a cheap teacher about all nodes, and the next teacher only about nodes of which the first was unsure.

    :param teachers: at least one, the cheapest first.
    :param unsure: a grade strictly between these two is unsure, and so is None. 0 <= low <= high <= 1.
    :raises ValueError: no teachers, or bounds out of order.
    """

    def __init__(self, teachers: Sequence[BaseGrader], unsure: tuple[float, float] = (0.2, 0.8)) -> None:
        super().__init__(_numbered(teachers), *unsure)
        self._low, self._high = unsure
        if not 0 <= self._low <= self._high <= 1:
            raise ValueError(f"unsure must be two bounds with 0 <= low <= high <= 1; got {unsure}")

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        grades = Grades([None] * len(nodes))
        for teacher in self._teachers.values():
            unsure = [place for place, grade in enumerate(grades) if grade is None or self._low < grade < self._high]
            await complete(grades, unsure, teacher, query, nodes)
        return grades


class SelfConsistencyGrader(CombiningGrader):
    """Grades each node several times. The grade is the mean, the spread says how far the gradings differ.

    Gradings differ if the teacher samples (`LLMGrader(llm, llm_kwargs={"temperature": 0.8})` on an LLM without
    log-probabilities), or if each has its own prompt. Log-probabilities do not depend on the temperature, so give
    prompts for an LLM that has them.

    :param teacher: the teacher to ask; put a cache around this grader, not inside.
    :param n: how many gradings without prompts, at least 2.
    :param prompts: one grading with each of these prompts instead, at least 2; the teacher must have just one prompt.
    :raises ValueError: fewer than two gradings, a teacher with no or several prompts, or a cached teacher.
    """

    def __init__(self, teacher: BaseGrader, n: int = 3, prompts: Sequence[BasePromptTemplate] | None = None) -> None:
        if isinstance(teacher, CachedGrader):
            raise ValueError("teacher is cached and would repeat itself: use CachedGrader(SelfConsistencyGrader(...))")
        gradings = n if prompts is None else len(prompts)
        if gradings < 2:
            raise ValueError(f"{'n' if prompts is None else 'prompts'} must be at least 2; got {gradings}")
        self._n = n if prompts is None else 1
        wordings = [_with_prompt(teacher, prompt) for prompt in prompts or ()]
        named = {f"wording_{place}_": wording for place, wording in enumerate(wordings, start=1)}
        super().__init__(named or {"": teacher}, self._n)

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        gradings = [teacher for teacher in self._teachers.values() for _ in range(self._n)]
        return mean(await asyncio.gather(*(ask(teacher, query, nodes) for teacher in gradings)))


def _numbered(teachers: Sequence[BaseGrader]) -> dict[str, BaseGrader]:
    """Name teachers by their place, from 1. :raises ValueError: there are none."""
    if not teachers:
        raise ValueError("teachers must be at least one grader; got none")
    return {f"teacher_{number}_": teacher for number, teacher in enumerate(teachers, start=1)}


def _with_prompt(teacher: BaseGrader, prompt: BasePromptTemplate) -> BaseGrader:
    """Copy a teacher, sharing its model and limits, with another prompt."""
    before = teacher.get_prompts()
    if len(before) != 1:
        raise ValueError(f"prompts need a teacher with one prompt; {type(teacher).__name__} has {len(before)}")
    twin = copy.copy(teacher)
    twin.update_prompts(dict.fromkeys(before, prompt))
    if teacher.get_prompts() != before:
        teacher.update_prompts(before)
        raise ValueError(
            f"prompts need a teacher whose copies have a prompt of their own; {type(teacher).__name__}'s share it"
        )
    return twin
