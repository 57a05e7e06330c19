"""The same teacher asked several times."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence

from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.cache import CachedGrader
from llama_index_refine.graders.combining import Caller, CombiningGrader, mean


class SelfConsistencyGrader(CombiningGrader):
    """Grades each node several times. The grade is the mean, the spread says how far the gradings differ.

    Gradings differ where the teacher samples (`LLMGrader(llm, llm_kwargs={"temperature": 0.8})` on an LLM without
    log-probabilities), or where each uses a prompt of its own. Log-probabilities do not depend on the temperature: with
    them, give prompts.

    :param teacher: who grades; put a cache around this grader, not inside.
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
        if prompts is None:
            super().__init__({"": teacher})
            self._gradings = [teacher] * n
        else:
            self._gradings = [_with_prompt(teacher, prompt) for prompt in prompts]
            super().__init__({f"wording_{place}": grading for place, grading in enumerate(self._gradings, start=1)})

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`."""
        return f"{super().fingerprint()} {len(self._gradings)}"

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode], caller: Caller) -> Grades:
        return mean(await asyncio.gather(*(caller.ask(teacher, query, nodes) for teacher in self._gradings)))


def _with_prompt(teacher: BaseGrader, prompt: BasePromptTemplate) -> BaseGrader:
    """Copy a teacher, sharing its model and limits, with another prompt."""
    keys = list(teacher.get_prompts())
    if len(keys) != 1:
        raise ValueError(f"prompts need a teacher with one prompt; {type(teacher).__name__} has {len(keys)}")
    twin = copy.copy(teacher)
    twin.update_prompts({keys[0]: prompt})
    return twin
