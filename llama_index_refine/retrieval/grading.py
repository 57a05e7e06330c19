"""Where grades come from: the query's own examples, people, and the teacher."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from llama_index_refine.graders.account import Account
from llama_index_refine.graders.asking.loop import in_thread, run
from llama_index_refine.graders.base import BaseGrader, Grades, in_time, on_scale
from llama_index_refine.ids import same_id
from llama_index_refine.locks import OfEach
from llama_index_refine.qdrant.collection import QdrantCollection
from llama_index_refine.qdrant.points import Found, points_of
from llama_index_refine.refining.trust import Reliability
from llama_index_refine.retrieval.events import GradingEvent
from llama_index_refine.retrieval.feedback import Feedback
from llama_index_refine.scheduling import at_once, llama_index, tell

logger = logging.getLogger(__name__)

# Queries that are graded side by side when a batch is run blocking; each has its own concurrent calls.
GRADING_THREADS = 16
# A teacher that keeps the deadline itself, and the teachers that it asks, hand over what they have a moment after.
GRACE_SECONDS = 1.0

# The record of a teacher, which all its retrievers share, kept as long as the teacher is.
_records = OfEach(Reliability)
reliability_of = _records.of


@dataclass(frozen=True)
class Sheet:
    """What a teacher is given: a query, its nodes, and the account that pays."""

    query: QueryBundle
    nodes: Sequence[BaseNode]
    account: Account


@dataclass(frozen=True, eq=False)
class Grading:
    """Asks the teacher. An item is a `Sheet`, its result `Grades`.

    :param grader: the teacher.
    :param record: what its grades have shown of it, for all its retrievers.
    """

    grader: BaseGrader
    record: Reliability

    def run(self, items: Sequence[Sheet]) -> Sequence[Any]:
        """Grade; several queries in threads."""
        works = [self._grade(item, blocks=True) for item in items]
        if len(works) == 1:
            return [at_once(works[0])]
        with ThreadPoolExecutor(GRADING_THREADS) as pool:
            futures = [pool.submit(copy_context().run, at_once, work) for work in works]
            return [future.exception() or future.result() for future in futures]

    async def arun(self, items: Sequence[Sheet]) -> Sequence[Any]:
        """Grade all queries side by side. A teacher that cancels itself cancels nothing else."""
        results = await asyncio.gather(*(self._grade(item, blocks=False) for item in items), return_exceptions=True)
        if len(items) == 1 and isinstance(results[0], Exception):
            raise results[0]
        return results

    async def _grade(self, sheet: Sheet, blocks: bool) -> Grades:
        tell(partial(_shown, self.grader, sheet), llama_index)
        whole, began = sheet.account, time.perf_counter()
        # What this grading alone costs, and why it fails.
        own = Account(whole.budget, kept=whole.kept, started=whole.started, whole=whole)
        with own.active():
            if not blocks:
                given = await self._in_time(self.grader.agrade(sheet.query, sheet.nodes), sheet)
            elif whole.budget.seconds is None:
                given = self.grader.grade(sheet.query, sheet.nodes)
            else:
                given = run(self._in_thread(sheet))
        grades = checked(given, len(sheet.nodes))
        tell(partial(_graded, sheet, grades, own, time.perf_counter() - began))
        tell(partial(_ordered, sheet, grades), llama_index)
        return grades

    async def _in_thread(self, sheet: Sheet) -> Sequence[float | None]:
        """Have a blocking teacher grade that can be given up, should it never return."""
        return await self._in_time(in_thread(self.grader.grade, sheet.query, sheet.nodes), sheet)

    async def _in_time(self, asked: Awaitable[Sequence[float | None]], sheet: Sheet) -> Sequence[float | None]:
        return await in_time(asked, type(self.grader).__name__, len(sheet.nodes), GRACE_SECONDS)


def _graded(sheet: Sheet, grades: Grades, account: Account, seconds: float) -> GradingEvent:
    given = [(node.node_id, grade) for node, grade in zip(sheet.nodes, grades, strict=True) if grade is not None]
    return GradingEvent(
        query_str=sheet.query.query_str,
        node_ids=[node_id for node_id, _ in given],
        grades=[grade for _, grade in given],
        ungraded=len(grades) - len(given),
        failures=list(account.failures),
        milliseconds=1000 * seconds,
        **account.bill(),
    )


def _shown(grader: BaseGrader, sheet: Sheet) -> ReRankStartEvent:
    """LlamaIndex's own event, by which tracers know the span of a reranker."""
    nodes = [NodeWithScore(node=node) for node in sheet.nodes]
    return ReRankStartEvent(query=sheet.query, nodes=nodes, top_n=len(nodes), model_name=type(grader).__name__)


def _ordered(sheet: Sheet, grades: Grades) -> ReRankEndEvent:
    given = [NodeWithScore(node=node, score=grade) for node, grade in zip(sheet.nodes, grades, strict=True)]
    return ReRankEndEvent(
        nodes=sorted(given, key=lambda entry: -1.0 if entry.score is None else entry.score, reverse=True)
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


async def take_examples(collection: QdrantCollection, feedback: Feedback, examples: Mapping[str, float]) -> None:
    """Take the query's own examples for graded, as far as the collection has them and its filter admits them.

    :param collection: what is searched.
    :param feedback: the query.
    :param examples: the relevance in [0, 1] of each, by node id.
    """
    feedback.doing = "fetching the examples"
    points = [point for node_id in examples for point in points_of(node_id)]
    found = await collection.those(feedback.first, points, vectors=True)
    found = found.with_vectors()
    if len(found.ids) < len(examples):
        missing = (
            f"{len(examples) - len(found.ids)} of the examples were not found: they are gone, or outside the filter"
        )
        feedback.account.note(missing)
        logger.warning("Going on without some examples: %s", missing)
    feedback.take(found, Grades([examples[same_id(node.node_id)] for node in found.nodes]), believed=1.0)


async def with_judged(
    collection: QdrantCollection, judged: Sequence[str], feedback: Feedback, shown: Found, limit: int
) -> Found:
    """Put the nodes that people have judged, wherever they rank, in the place of the last others shown.

    :param collection: what is searched.
    :param judged: ids of the nodes whose grade the teacher knows beforehand.
    :param feedback: the query.
    :param shown: what is to be shown to the teacher.
    :param limit: the most nodes to show.
    :return: what is to be shown instead.
    """
    known = {same_id(node_id) for node_id in judged}
    names = [same_id(node.node_id) for node in shown.nodes]
    others = [at for at, name in enumerate(names) if name not in known]
    elsewhere = [node_id for node_id in judged if same_id(node_id) not in names]
    missing = [point for node_id in elsewhere for point in points_of(node_id) if point not in feedback.shown]
    room = limit - (len(names) - len(others))
    if not missing or room < 1:
        return shown
    feedback.doing = "fetching what people have judged"
    found = await collection.those(feedback.first, missing, vectors=True)
    found = found.with_vectors(room)
    dropped = others[max(len(others) - len(found.ids), 0) :]
    return shown.at([at for at in range(len(shown.ids)) if at not in dropped]).beside(found)
