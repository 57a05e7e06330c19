"""The ways to keep what people say."""

from __future__ import annotations

from abc import ABC, abstractmethod

from llama_index.core.schema import QueryType

from llama_index_refine.retrieval.examples import with_examples
from llama_index_refine.retrieval.loop import FeedbackLoop
from llama_index_refine.retrieval.outcomes import finished
from llama_index_refine.retrieval.running import arun, run


class Judges(ABC):
    """Keeps people's judgements in a memory, blocking or not."""

    @abstractmethod
    def _loop(self) -> FeedbackLoop:
        """Describe how a query is retrieved."""

    def judge(self, query: QueryType, node_id: str, grade: float, user: str | None = None) -> None:
        """Keep a person's judgement in the memory, for this query and, as far as they agree, for similar ones.

        :param query: the query.
        :param node_id: the node's id.
        :param grade: its relevance in [0, 1]: 1 for a thumb up, 0 for a thumb down.
        :param user: who says so; their later judgement of the node replaces it. None for the memory's.
        :raises ValueError: no grade, no memory, or a node that this retriever's searches cannot find.
        """
        finished(run([self._loop().judge(with_examples(query), node_id, grade, user)])[0])

    async def ajudge(self, query: QueryType, node_id: str, grade: float, user: str | None = None) -> None:
        """Keep a person's judgement without blocking the event loop. See `judge`."""
        finished((await arun([self._loop().judge(with_examples(query), node_id, grade, user)]))[0])
