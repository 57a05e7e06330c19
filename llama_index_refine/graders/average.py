"""Several teachers as one: their average."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.combining import CombiningGrader, ask, mean, numbered


class AverageGrader(CombiningGrader):
    """Asks all teachers at the same time. The grade is the mean of those who answered, the spread how far they differ.

    :param teachers: at least one.
    :param weights: one positive weight a teacher; None for equal ones.
    :raises ValueError: no teachers, or weights that do not fit them.
    """

    def __init__(self, teachers: Sequence[BaseGrader], weights: Sequence[float] | None = None) -> None:
        super().__init__(numbered(teachers))
        if weights is not None and (len(weights) != len(teachers) or not all(weight > 0 for weight in weights)):
            raise ValueError(f"weights must be {len(teachers)} numbers above 0, one a teacher; got {list(weights)}")
        self._weights = weights

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`."""
        return [*super().decides(), self._weights]

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        asked = (ask(teacher, query, nodes) for teacher in self._teachers.values())
        return mean(await asyncio.gather(*asked), self._weights)
