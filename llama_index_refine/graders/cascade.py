"""Several teachers as one: the cheap one first."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.combining import CombiningGrader, complete, numbered


class CascadeGrader(CombiningGrader):
    """Asks a cheap teacher about all nodes, and the next one only about those it was not sure of.

    :param teachers: at least one, the cheapest first.
    :param unsure: a grade strictly between these two is unsure, and so is none at all. 0 <= low <= high <= 1.
    :raises ValueError: no teachers, or bounds out of order.
    """

    def __init__(self, teachers: Sequence[BaseGrader], unsure: tuple[float, float] = (0.2, 0.8)) -> None:
        super().__init__(numbered(teachers))
        low, high = unsure
        if not 0 <= low <= high <= 1:
            raise ValueError(f"unsure must be two bounds with 0 <= low <= high <= 1; got {unsure}")
        self._low, self._high = low, high

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`."""
        return [*super().decides(), self._low, self._high]

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        grades = Grades([None] * len(nodes))
        for teacher in self._teachers.values():
            unsure = [place for place, grade in enumerate(grades) if grade is None or self._low < grade < self._high]
            await complete(grades, unsure, teacher, query, nodes)
        return grades
