"""Several teachers as one: their average, or the cheap one first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.base import BaseGrader, Grades
from llama_index_refine.graders.combining import Caller, CombiningGrader, mean, spread_of


class AverageGrader(CombiningGrader):
    """Asks all teachers at the same time. The grade is the mean of those who answered, the spread how far they differ.

    :param teachers: at least one.
    :param weights: one positive weight a teacher; None for equal ones.
    :raises ValueError: no teachers, or weights that do not fit them.
    """

    def __init__(self, teachers: Sequence[BaseGrader], weights: Sequence[float] | None = None) -> None:
        super().__init__(_numbered(teachers))
        if weights is not None and (len(weights) != len(teachers) or not all(weight > 0 for weight in weights)):
            raise ValueError(f"weights must be {len(teachers)} numbers above 0, one a teacher; got {list(weights)}")
        self._weights = weights

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`."""
        return f"{super().fingerprint()} {self._weights}"

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode], caller: Caller) -> Grades:
        asked = (caller.ask(teacher, query, nodes) for teacher in self._teachers.values())
        return mean(await asyncio.gather(*asked), self._weights)


class CascadeGrader(CombiningGrader):
    """Asks a cheap teacher about all nodes, and the next one only about those it was not sure of.

    :param teachers: at least one, the cheapest first.
    :param unsure: a grade strictly between these two is unsure, and so is none at all. 0 <= low <= high <= 1.
    :raises ValueError: no teachers, or bounds out of order.
    """

    def __init__(self, teachers: Sequence[BaseGrader], unsure: tuple[float, float] = (0.2, 0.8)) -> None:
        super().__init__(_numbered(teachers))
        low, high = unsure
        if not 0 <= low <= high <= 1:
            raise ValueError(f"unsure must be two bounds with 0 <= low <= high <= 1; got {unsure}")
        self._low, self._high = low, high

    def fingerprint(self) -> str:
        """See `BaseGrader.fingerprint`."""
        return f"{super().fingerprint()} {self._low} {self._high}"

    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode], caller: Caller) -> Grades:
        values: list[float | None] = [None] * len(nodes)
        spreads: list[float | None] = [None] * len(nodes)
        for teacher in self._teachers.values():
            open_places = [place for place, grade in enumerate(values) if self._is_unsure(grade)]
            grades = await caller.ask(teacher, query, [nodes[place] for place in open_places])
            for index, place in enumerate(open_places):
                if grades[index] is not None:
                    values[place], spreads[place] = grades[index], spread_of(grades, index)
        return Grades(values, spreads)

    def _is_unsure(self, grade: float | None) -> bool:
        return grade is None or self._low < grade < self._high


def _numbered(teachers: Sequence[BaseGrader]) -> dict[str, BaseGrader]:
    if not teachers:
        raise ValueError("teachers must be at least one grader; got none")
    return {f"teacher_{number}": teacher for number, teacher in enumerate(teachers, start=1)}
