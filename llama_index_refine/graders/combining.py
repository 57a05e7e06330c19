"""What every teacher that grades through other teachers has in common."""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import BaseNode, QueryBundle
from typing_extensions import Self

from llama_index_refine.graders.account import current_account
from llama_index_refine.graders.asking.loop import in_thread, is_ours, run
from llama_index_refine.graders.base import BaseGrader, GraderError, Grades, in_time, on_scale

logger = logging.getLogger(__name__)

# What a teacher that keeps the deadline itself may need after it to return what it has.
_GRACE = 0.5


async def ask(teacher: BaseGrader, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
    """Grade some nodes the way one's own teacher was asked, at most until the query's deadline.

    :param teacher: who grades; `agrade` from coroutines, and `grade` where it all began in synchronous code.
    :param query: the query.
    :param nodes: the nodes.
    :return: one grade a node, all None where the teacher failed or was late.
    :raises GraderError: the teacher is set up wrongly and was told to say so.
    """
    if not nodes:
        return Grades()
    name = type(teacher).__name__
    asked = in_thread(teacher.grade, query, nodes) if is_ours() else teacher.agrade(query, nodes)
    try:
        return valid(await in_time(asked, name, len(nodes), _GRACE), len(nodes))
    except GraderError:
        raise
    except Exception as error:
        reason = f"{name} failed ({type(error).__name__})"
        current_account().note(reason)
        logger.warning("Some nodes got no grade: %s", reason)
        return Grades([None] * len(nodes))


async def complete(
    grades: Grades, places: Sequence[int], teacher: BaseGrader, query: QueryBundle, nodes: Sequence[BaseNode]
) -> None:
    """Ask a teacher about some of the nodes, see `ask`, and put in the grades that it gives.

    :param grades: one grade a node, of which some change.
    :param places: which nodes to ask about.
    """
    answers = await ask(teacher, query, [nodes[place] for place in places])
    for place, grade, spread in zip(places, answers, answers.spread, strict=True):
        if grade is not None:
            grades[place], grades.spread[place] = grade, spread


def valid(grades: Sequence[float | None], count: int) -> Grades:
    """Keep what is a grade.

    :param grades: what a teacher returned.
    :param count: how many nodes it was asked about.
    :return: the grades, None for what is not a number in [0, 1].
    :raises ValueError: it returned another number of grades.
    """
    if len(grades) != count:
        raise ValueError(f"the teacher returned {len(grades)} grades for {count} nodes")
    values = [None if grade is None else on_scale(grade) for grade in grades]
    return Grades(values, getattr(grades, "spread", None))


def mean(gradings: Sequence[Grades], weights: Sequence[float] | None = None) -> Grades:
    """Average several gradings of the same nodes.

    :param gradings: one or more gradings.
    :param weights: their weights; None for equal ones.
    :return: for each node the weighted mean of the grades there are, with their standard deviation as its spread. Where
        there is only one, it keeps the spread it came with.
    """
    averages = Grades()
    for column in zip(*(zip(each, each.spread, strict=True) for each in gradings), strict=True):
        weighted = zip(column, weights or [1.0] * len(column), strict=True)
        given = [(grade, spread, weight) for (grade, spread), weight in weighted if grade is not None]
        average, spread = given[0][:2] if given else (None, None)
        if len(given) > 1:
            total = sum(weight for _, _, weight in given)
            middle = sum(grade * weight for grade, _, weight in given) / total
            average = min(1.0, max(0.0, middle))
            spread = math.sqrt(sum(weight * (grade - middle) ** 2 for grade, _, weight in given) / total)
        averages.append(average)
        averages.spread.append(spread)
    return averages


class CombiningGrader(BaseGrader):
    """Grades through other teachers; a subclass says how. Their prompts are reached through it.

    :param teachers: the teachers, by the names that stand before their prompts' names; as they are.
    :param settings: what decides the grades beside the teachers.
    """

    def __init__(self, teachers: Mapping[str, BaseGrader], *settings: object) -> None:
        self._teachers = dict(teachers)
        self._settings = settings

    @abstractmethod
    async def _combine(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """Grade the nodes, asking the teachers by `ask`."""

    def __copy__(self: Self) -> Self:
        """Copy the teachers with it, as deep as they combine, so that a copy has prompts of its own."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._teachers = {name: copy.copy(teacher) for name, teacher in self._teachers.items()}
        return twin

    def grade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.grade`."""
        return run(self._combine(query, nodes))

    async def agrade(self, query: QueryBundle, nodes: Sequence[BaseNode]) -> Grades:
        """See `BaseGrader.agrade`."""
        return await self._combine(query, nodes)

    @property
    def trusted(self) -> bool:  # type: ignore[override]
        """See `BaseGrader.trusted`: where all of the teachers are. People need none behind them."""
        return all(teacher.trusted for teacher in self._teachers.values())

    @property
    def image_folders(self) -> list[Path]:  # type: ignore[override]
        """See `BaseGrader.image_folders`: those of all the teachers."""
        return list(dict.fromkeys(folder for teacher in self._teachers.values() for folder in teacher.image_folders))

    def judged(self, query: QueryBundle) -> list[str]:
        """See `BaseGrader.judged`: what any of the teachers knows."""
        return list(dict.fromkeys(node for teacher in self._teachers.values() for node in teacher.judged(query)))

    def decides(self) -> list[object]:
        """See `BaseGrader.decides`."""
        return [*(teacher.fingerprint() for teacher in self._teachers.values()), *self._settings]

    # One flat dictionary and not LlamaIndex's modules: `update_prompts` cannot reach modules inside modules.
    def _get_prompts(self) -> PromptDictType:
        return {
            name + key: prompt
            for name, teacher in self._teachers.items()
            for key, prompt in teacher.get_prompts().items()
        }

    def _update_prompts(self, prompts: PromptDictType) -> None:
        for name, teacher in self._teachers.items():
            known = teacher.get_prompts()
            teacher.update_prompts({key: prompts[name + key] for key in known if name + key in prompts})
