"""The sparse query of hybrid mode."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models


@dataclass(frozen=True, eq=False)
class SparseEncoding:
    """Makes sparse vectors of texts, with the store's function. An item is a text, its result a `SparseVector`.

    :param store: the vector store.
    """

    store: QdrantVectorStore

    def run(self, items: Sequence[str]) -> Sequence[Any]:
        """Encode all texts in one go."""
        encode = self.store._sparse_query_fn
        assert encode is not None
        indices, values = encode(list(items))
        return [
            models.SparseVector(indices=[int(at) for at in row], values=[float(value) for value in worth])
            for row, worth in zip(indices, values, strict=True)
        ]

    async def arun(self, items: Sequence[str]) -> Sequence[Any]:
        """Encode in a worker thread: the function is blocking and may be a model."""
        return await asyncio.to_thread(self.run, items)
