"""The step that embeds the query."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import QueryBundle


@dataclass(frozen=True)
class Embedding:
    """Embeds queries. An item is a `QueryBundle`, its result a list of floats."""

    model: Callable[[], BaseEmbedding]

    def run(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed one after the other."""
        embed = self.model().get_agg_embedding_from_queries
        results: list[Any] = []
        for item in items:
            try:
                results.append(embed(item.embedding_strs))
            except Exception as error:
                results.append(error)
        return results

    async def arun(self, items: Sequence[QueryBundle]) -> Sequence[Any]:
        """Embed side by side."""
        embed = self.model().aget_agg_embedding_from_queries
        return await asyncio.gather(*(embed(item.embedding_strs) for item in items), return_exceptions=True)
