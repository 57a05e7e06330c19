"""The step that asks the teacher."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_index.core.schema import BaseNode, QueryBundle

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.base import BaseGrader, Grades, on_scale
from llama_index_refine.retrieval.events import GradingEvent
from llama_index_refine.tracing import tell

# Queries that are graded side by side when a batch is run blocking; each has its own concurrent calls.
GRADING_THREADS = 16
# A teacher that keeps the deadline itself hands over what it has a moment after; one that does not is cut off then.
GRACE_SECONDS = 0.25


@dataclass(frozen=True)
class Sheet:
    """What a teacher is given: a query, its nodes, and the account that pays."""

    query: QueryBundle
    nodes: Sequence[BaseNode]
    account: Account


@dataclass(frozen=True)
class Grading:
    """Asks the teacher. An item is a `Sheet`, its result `Grades`."""

    grader: Callable[[], BaseGrader]

    def run(self, items: Sequence[Sheet]) -> Sequence[Any]:
        """Grade; several queries in threads."""
        if len(items) == 1:
            return [self._grade(items[0])]
        with ThreadPoolExecutor(GRADING_THREADS) as pool:
            futures = [pool.submit(copy_context().run, self._grade, item) for item in items]
            return [future.exception() or future.result() for future in futures]

    async def arun(self, items: Sequence[Sheet]) -> Sequence[Any]:
        """Grade all queries side by side."""
        if len(items) == 1:
            return [await self._agrade(items[0])]
        return await asyncio.gather(*(self._agrade(item) for item in items), return_exceptions=True)

    def _grade(self, sheet: Sheet) -> Grades:
        before, began = _spent(sheet.account), time.perf_counter()
        with sheet.account.active():
            grades = checked(self.grader().grade(sheet.query, sheet.nodes), len(sheet.nodes))
        tell(partial(_graded, sheet, grades, before, time.perf_counter() - began))
        return grades

    async def _agrade(self, sheet: Sheet) -> Grades:
        before, began = _spent(sheet.account), time.perf_counter()
        left = sheet.account.seconds_left()
        with sheet.account.active():
            grading = self.grader().agrade(sheet.query, sheet.nodes)
            given = await asyncio.wait_for(grading, None if left is None else left + GRACE_SECONDS)
        grades = checked(given, len(sheet.nodes))
        tell(partial(_graded, sheet, grades, before, time.perf_counter() - began))
        return grades


def _spent(account: Account) -> dict[str, int]:
    return {
        "llm_calls": account.calls,
        "prompt_tokens": account.prompt_tokens,
        "completion_tokens": account.completion_tokens,
        "cached_grades": account.cached,
    }


def _graded(sheet: Sheet, grades: Grades, before: dict[str, int], seconds: float) -> GradingEvent:
    given = [(node.node_id, grade) for node, grade in zip(sheet.nodes, grades, strict=True) if grade is not None]
    bill: dict[str, Any] = {name: spent - before[name] for name, spent in _spent(sheet.account).items()}
    return GradingEvent(
        query_str=sheet.query.query_str,
        node_ids=[node_id for node_id, _ in given],
        grades=[grade for _, grade in given],
        ungraded=len(grades) - len(given),
        failures=list(sheet.account.failures),
        milliseconds=1000 * seconds,
        **bill,
    )


def checked(grades: Sequence[float | None], count: int) -> Grades:
    """Take a teacher's answer as grades.

    :param grades: what it returned.
    :param count: how many nodes it was shown.
    :return: the grades; NaN counts as no grade.
    :raises ValueError: another number of grades, or one outside [0, 1].
    """
    if len(grades) != count:
        raise ValueError(f"the grader returned {len(grades)} grades for {count} nodes")
    values: list[float | None] = []
    for grade in grades:
        value = None if grade is None or math.isnan(grade) else on_scale(grade)
        if value is None and grade is not None and not math.isnan(grade):
            raise ValueError(f"the grader returned {grade}; a grade must be in [0, 1], or None")
        values.append(value)
    return Grades(values, getattr(grades, "spread", None))
