"""The ways to call a selection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.schema import QueryType

from llama_index_refine.retrieval.examples import in_batches
from llama_index_refine.retrieval.outcomes import finished, results_of
from llama_index_refine.retrieval.running import Outcome, arun, run
from llama_index_refine.retrieval.target import Target
from llama_index_refine.selection import Selection
from llama_index_refine.steps import Steps
from llama_index_refine.tracing import span


class Selects(ABC):
    """Selects nodes: for one query or many, blocking or not."""

    @abstractmethod
    def _select_steps(self, query: QueryType, target: Target) -> Steps[Selection]:
        """Describe how nodes are selected for one query."""

    @span
    def select(
        self,
        query: QueryType,
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | None = None,
    ) -> Selection:
        """Return every node of the collection that belongs to a query, with the probability that it does.

        Without a target the cut is where the expected F1 is greatest. With one, documents drawn at random show whether
        it is kept, as far as the budget reaches, and the other of the two is made as great as can be.

        :param query: the query; a `QueryWithExamples` brings examples of its own.
        :param precision: the least share of the selected nodes that has to be relevant, in (0, 1).
        :param recall: the least share of the relevant nodes that has to be selected, in (0, 1).
        :param confidence: the probability with which a certificate holds, in (0, 1).
        :param budget: the most documents to grade, those by which the query is refined among them; None for twice as
            many as those, or with a target five times as many.
        :return: the selection; it says the `reason` where the target is not certified.
        :raises ValueError: a target outside (0, 1), or two; a budget that is too small; an empty collection.
        :raises Exception: as for `refine`.
        """
        target = Target(precision, recall, confidence, budget)
        return _selection(run([self._select_steps(query, target)])[0])

    @span
    async def aselect(
        self,
        query: QueryType,
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | None = None,
    ) -> Selection:
        """Select without blocking the event loop. See `select`."""
        target = Target(precision, recall, confidence, budget)
        (outcome,) = await arun([self._select_steps(query, target)])
        return _selection(outcome)

    @span
    def select_batch(
        self,
        queries: Sequence[QueryType],
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | None = None,
        batch_size: int = 32,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Select for many queries, which share requests to Qdrant. See `select`.

        :param queries: the queries.
        :param batch_size: queries on their way at a time; at least 1.
        :param return_exceptions: return a failed query's exception in its place; otherwise the first one is raised
            when all queries of its batch are done.
        :return: one `Selection` for each query. `confidence` is each one's, not that of all of them together.
        """
        target, selections = Target(precision, recall, confidence, budget), []
        for batch in in_batches(queries, batch_size):
            outcomes = run([self._select_steps(query, target) for query in batch])
            selections += results_of(outcomes, return_exceptions, _selection)
        return selections

    @span
    async def aselect_batch(
        self,
        queries: Sequence[QueryType],
        *,
        precision: float | None = None,
        recall: float | None = None,
        confidence: float = 0.9,
        budget: int | None = None,
        batch_size: int = 32,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Select for many queries without blocking the event loop. See `select_batch`."""
        target, selections = Target(precision, recall, confidence, budget), []
        for batch in in_batches(queries, batch_size):
            outcomes = await arun([self._select_steps(query, target) for query in batch])
            selections += results_of(outcomes, return_exceptions, _selection)
        return selections


def _selection(outcome: Outcome) -> Selection:
    selection: Selection = finished(outcome)
    return replace(selection, refinement=replace(selection.refinement, timings=outcome.seconds))
